from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.review.findings import Severity
from agents.reviewer import Review, ReviewRequest, review
from coditect import Context
from coditect.errors import InputError


def rules(found: Review) -> set[tuple[int, str]]:
    return {(finding.line, finding.rule) for finding in found.findings}


def write(folder: Path, name: str, text: str) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text).lstrip("\n"))
    return str(file)


async def test_review_of_a_file_reports_ruff_and_syntax_findings_with_their_lines(project: Path, ctx: Context) -> None:
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

    assert {
        (5, "mutable-default"),
        (5, "missing-docstring"),
        (7, "S602"),
        (8, "swallowed-exception"),
    } <= rules(found)
    assert {finding.file for finding in found.findings} == {path}
    assert found.files == 1


async def test_review_puts_the_worst_first_and_counts_what_it_cuts_off(project: Path, ctx: Context) -> None:
    path = write(project, "module.py", "import os\ndef one(a=[]):\n    return a\ndef two(a=[]):\n    return a\n")

    found = await review(ReviewRequest(path=path, max_findings=2), ctx)

    assert [finding.severity for finding in found.findings] == [Severity.ERROR, Severity.ERROR]
    assert found.truncated
    assert sum(found.counts.values()) > 2
    assert found.counts[Severity.ERROR] == 2


async def test_review_of_a_folder_names_files_as_requested_and_skips_hidden_ones(project: Path, ctx: Context) -> None:
    write(project, "pkg/one.py", "import os\n")
    write(project, "pkg/.venv/two.py", "import os\n")
    write(project, "pkg/notes.txt", "import os\n")

    found = await review(ReviewRequest(path=str(project / "pkg")), ctx)

    assert {finding.file for finding in found.findings} == {f"{project}/pkg/one.py"}
    assert found.files == 1


async def test_review_follows_the_globs(project: Path, ctx: Context) -> None:
    write(project, "one.py", "import os\n")
    write(project, "sub/two.py", "import os\n")

    found = await review(ReviewRequest(path=str(project), globs=["sub/*.py"]), ctx)

    assert {finding.file for finding in found.findings} == {f"{project}/sub/two.py"}


async def test_review_skips_links_that_lead_out_of_the_folder(project: Path, ctx: Context, tmp_path: Path) -> None:
    write(tmp_path, "secret.py", "import os\n")
    write(project, "one.py", '"""One."""\n')
    (project / "link.py").symlink_to(tmp_path / "secret.py")

    found = await review(ReviewRequest(path=str(project)), ctx)

    assert found.files == 1
    assert found.findings == []


@pytest.mark.parametrize("globs", [["../*.py"], ["/etc/*.py"], [""]])
async def test_review_refuses_globs_that_leave_the_path(globs: list[str], project: Path, ctx: Context) -> None:
    with pytest.raises(InputError, match="stay below"):
        await review(ReviewRequest(path=str(project), globs=globs), ctx)


async def test_review_of_a_path_that_is_not_there_is_refused_for_good(project: Path, ctx: Context) -> None:
    with pytest.raises(InputError, match="no such file or folder") as refused:
        await review(ReviewRequest(path=str(project / "nowhere")), ctx)

    assert not refused.value.retryable


async def test_review_of_a_folder_without_python_is_refused(project: Path, ctx: Context) -> None:
    with pytest.raises(InputError, match="no Python file matches"):
        await review(ReviewRequest(path=str(project)), ctx)


async def test_review_of_broken_syntax_reports_the_error_and_names_the_file(project: Path, ctx: Context) -> None:
    path = write(project, "broken.py", "def (:\n")

    found = await review(ReviewRequest(path=path), ctx)

    assert found.unparsed == [path]
    assert found.counts[Severity.ERROR] >= 1


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

    assert {(44, "S604"), (47, "swallowed-exception"), (94, "S307")} <= rules(found)
    assert {finding.line for finding in found.findings} <= {44, 47, 48, 94}
    assert {finding.file for finding in found.findings} == {"pkg/module.py"}
    assert found.unparsed == []


async def test_review_of_a_diff_does_not_guess_about_names_outside_the_hunk(ctx: Context) -> None:
    found = await review(ReviewRequest(diff=DIFF), ctx)

    assert not {"F821", "F401", "F841", "missing-docstring"} & {finding.rule for finding in found.findings}


async def test_review_of_a_diff_that_adds_a_file_knows_the_whole_file(ctx: Context) -> None:
    diff = "--- /dev/null\n+++ b/new.py\n@@ -0,0 +1,2 @@\n+import os\n+print(undefined)\n"

    found = await review(ReviewRequest(diff=diff), ctx)

    assert {(1, "F401"), (2, "F821"), (1, "missing-docstring")} <= rules(found)


async def test_review_of_a_diff_without_python_finds_nothing(ctx: Context) -> None:
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
