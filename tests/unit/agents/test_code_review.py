"""The reviewer: the packages of a repository, and findings in files, folders and diffs."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.reviewer import PackagesRequest, Review, ReviewRequest, packages, review
from agents.tools.review import Severity
from coditect import Context
from coditect.errors import InputError


def rules(found: Review) -> set[tuple[int, str]]:
    return {(finding.line, finding.rule) for finding in found.findings}


def write(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text).lstrip("\n"))
    return str(file)


async def test_review_of_a_file_reports_findings_with_their_lines(project: Path, ctx: Context) -> None:
    path = write(
        project,
        "module.py",
        '''
        """A module."""
        import subprocess


        def run(command, kept=[]):
            try:
                return subprocess.run(command, shell=True)
            except Exception:
                pass
        ''',
    )

    found = await review(ReviewRequest(path=path), ctx)

    assert {(5, "B006"), (5, "D103"), (7, "S602"), (8, "S110")} <= rules(found)
    assert {finding.file for finding in found.findings} == {path}
    assert found.files == 1


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def _f():\n" + "    x()\n" * 51, {(2, "PLR0915")}),
        ("def _f():\n" + "    x()\n" * 50, set()),
        ("def _f(a, b, c, d, e, *, f, g): ...\n", {(2, "PLR0913")}),
        ("class _C:\n    def f(self, a, b, c, d, e, g): ...\n", set()),
        ("def _f(a):\n" + "    if a:\n        a = 1\n" * 10, {(2, "C901")}),
        ("async def _f(*, a=dict()): ...\n", {(2, "B006")}),
        ("class C: ...\n", {(2, "D101")}),
        ("try:\n    g()\nexcept (KeyError, Exception):\n    pass\n", {(4, "S110")}),
    ],
)
async def test_review_finds_what_is_hard_to_change(
    code: str, found: set[tuple[int, str]], project: Path, ctx: Context
) -> None:
    hard = {"PLR0915", "PLR0913", "C901", "B006", "D100", "D101", "D102", "D103", "S110"}

    reviewed = await review(ReviewRequest(path=write(project, "module.py", f'"""M."""\n{code}')), ctx)

    assert {(line, rule) for line, rule in rules(reviewed) if rule in hard} == found


async def test_review_wants_no_docstrings_of_tests(project: Path, ctx: Context) -> None:
    path = write(project, "tests/unit/test_it.py", "def test_it(): ...\n")

    assert rules(await review(ReviewRequest(path=path), ctx)) == set()


async def test_review_puts_the_worst_first_and_counts_what_it_cuts_off(project: Path, ctx: Context) -> None:
    path = write(project, "module.py", "import os\ndef one(a=[]):\n    return a\ndef two(a=[]):\n    return a\n")

    found = await review(ReviewRequest(path=path, max_findings=2), ctx)

    assert [finding.severity for finding in found.findings] == [Severity.ERROR, Severity.ERROR]
    assert found.truncated
    assert sum(found.counts.values()) > 2
    assert found.counts[Severity.ERROR] == 2


@pytest.mark.parametrize(("globs", "found"), [(None, ["one.py", "sub/two.py"]), (["sub/*.py"], ["sub/two.py"])])
async def test_review_of_a_folder_names_files_as_requested_and_skips_hidden_ones(
    globs: list[str] | None, found: list[str], project: Path, ctx: Context
) -> None:
    for name in ("one.py", "sub/two.py", ".venv/three.py", "notes.txt"):
        write(project, f"pkg/{name}", "import os\n")
    fields = {} if globs is None else {"globs": globs}

    reviewed = await review(ReviewRequest.model_validate({"path": str(project / "pkg"), **fields}), ctx)

    assert {finding.file for finding in reviewed.findings} == {f"{project}/pkg/{name}" for name in found}
    assert reviewed.files == len(found)


async def test_review_skips_links_out_and_reports_broken_syntax(project: Path, ctx: Context, tmp_path: Path) -> None:
    write(tmp_path, "secret.py", "import os\n")
    write(project, "one.py", '"""One."""\n')
    (project / "link.py").symlink_to(tmp_path / "secret.py")

    found = await review(ReviewRequest(path=str(project)), ctx)

    assert found.files == 1
    assert found.findings == []

    path = write(project, "broken.py", "def (:\n")

    found = await review(ReviewRequest(path=path), ctx)

    assert found.unparsed == [path]
    assert found.counts[Severity.ERROR] >= 1

    (project / "latin.py").write_bytes(b'x = "\xff"\n')

    found = await review(ReviewRequest(path=str(project / "latin.py")), ctx)

    assert (found.unparsed, [finding.rule for finding in found.findings]) == ([f"{project}/latin.py"], ["E902"])


@pytest.mark.parametrize("fields", [{}, {"path": "a", "diff": "b"}])
def test_review_request_needs_exactly_one_subject(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="exactly one"):
        ReviewRequest.model_validate(fields)


DIFF = """\
diff --git a/pkg/module.py b/pkg/module.py
--- a/pkg/module.py
+++ b/pkg/module.py
@@ -40,6 +40,9 @@ class Thing:
         for item in self.items:
             unknown_before(item)
             try:
                 item.close()
+                subprocess.run(item.command, shell=True)
             except ValueError:
                 pass
+            except Exception:
+                pass
         return None
@@ -90,2 +93,3 @@ def late():
     old = eval("1")
+    fresh = eval("2")
     return old
"""


async def test_review_of_a_diff_reports_only_added_lines_at_their_real_numbers(ctx: Context) -> None:
    found = await review(ReviewRequest(diff=DIFF), ctx)

    assert {(44, "S604"), (47, "S110"), (94, "S307")} <= rules(found)
    assert {finding.line for finding in found.findings} <= {44, 47, 48, 94}
    assert {finding.file for finding in found.findings} == {"pkg/module.py"}
    assert found.unparsed == []
    guesses = {"F821", "F401", "F841", "D100"}  # about names outside of the hunk
    assert not guesses & {finding.rule for finding in found.findings}


async def test_review_of_a_diff_knows_whole_files_and_skips_those_of_other_languages(ctx: Context) -> None:
    diff = "--- /dev/null\n+++ b/new.py\n@@ -0,0 +1,2 @@\n+import os\n+print(undefined)\n"

    found = await review(ReviewRequest(diff=diff), ctx)

    assert {(1, "F401"), (2, "F821"), (1, "D100")} <= rules(found)

    diff = "--- a/notes.md\n+++ b/notes.md\n@@ -1 +1 @@\n-a\n+b\n"

    found = await review(ReviewRequest(diff=diff), ctx)

    assert found.files == 0
    assert found.findings == []


@pytest.mark.parametrize(
    ("diff", "said"),
    [
        ("hello", "no unified diff"),
        ("--- a/x.py\n+++ b/../../etc/x.py\n@@ -1 +1 @@\n-a\n+b\n", "leaves the repository"),
        ("--- a/x.py\n+++ /etc/x.py\n@@ -1 +1 @@\n-a\n+b\n", "leaves the repository"),
        ("--- a/x.py\n+++ b/x.py\n@@ -1,3 +1,3 @@\n a\n", "ends inside a hunk"),
        ("--- a/x.py\n+++ b/x.py\n@@ -1 +999999999 @@\n-a\n+b\n", "too large"),
        ("--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n?a\n b\n", "has no mark"),
    ],
)
async def test_review_of_a_bad_diff_is_refused_with_what_to_do(diff: str, said: str, ctx: Context) -> None:
    with pytest.raises(InputError, match=said):
        await review(ReviewRequest(diff=diff), ctx)


@pytest.mark.parametrize(
    ("path", "globs", "said"),
    [
        (".", ["../*.py"], "stay below"),
        (".", ["/etc/*.py"], "stay below"),
        (".", [""], "stay below"),
        ("nowhere", ["*.py"], "no such file or folder"),
        (".", ["*.py"], "no Python file matches"),
    ],
)
async def test_review_needs_a_source(path: str, globs: list[str], said: str, project: Path, ctx: Context) -> None:
    with pytest.raises(InputError, match=said) as refused:
        await review(ReviewRequest(path=str(project / path), globs=globs), ctx)

    assert not refused.value.retryable


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("shop", "shop/till", "shop/till/.cache", "shop/build", "tools/lint", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("shop", "shop/till", "shop/till/.cache", "shop/build", "tools/lint"):
        (tmp_path / folder / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("repository")
def test_packages_are_found_once_and_what_is_not_ours_is_left_out() -> None:
    assert packages(PackagesRequest(roots=["tools", "shop", "shop/till"])) == ["shop", "shop/till", "tools/lint"]


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("roots", [["shop", "nowhere"], ["docs"]])
def test_roots_without_a_package_are_refused(roots: list[str]) -> None:
    with pytest.raises(InputError):
        packages(PackagesRequest(roots=roots))
