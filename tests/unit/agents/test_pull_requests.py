"""Pull requests of a Git server: what is read, fetched and posted, and to whom nothing is sent."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from agents.demo.deployment import BROKEN, GOOD, make_repository
from agents.deployer import (
    ChangeRequest,
    Checks,
    DeployRequest,
    ReportRequest,
    Scan,
    read_change,
    release,
    report_checks,
)
from agents.deployment.pull_requests import CheckState, as_code, open_git_server
from agents.deployment.repository import commit_of, fetch, worktree
from agents.deployment.targets import ContainerSpec
from agents.reviewer import Review
from agents.tester import FailedTest, SuiteOutcome, TestsReport
from agents.tools.review import Finding, Severity
from coditect import PlainContext, RetryAfter
from coditect.errors import CoditectError, InputError, NotFound, Retryable, SetupError
from coditect.integrations.http.calls import HttpAnswer
from tests.unit.agents.git_server import TOKEN, GitServerStub, git_server

GREEN = TestsReport(
    verdict=SuiteOutcome.PASSED, passed=3, failed=0, errors=0, skipped=0, duration_seconds=0.1, failures=[]
)
FINDING = Finding(file="prices.py", line=6, severity=Severity.WARNING, rule="RUF046", message="`round` of an int")
COUNTS = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.INFO: 0}
PASSED = Checks(
    review=Review(findings=[FINDING], counts=COUNTS, files=1), tests=GREEN, scan=Scan(clean=True, findings=[])
)


class Plain:
    """A context of a plain handler in the workflow `run-1`."""

    task_id = "run-1:report"
    requester = "workflow:run-1"
    locks: ClassVar[list[str]] = []

    def lock(self, name: str) -> nullcontext[None]:
        self.locks.append(name)
        return nullcontext()


CTX = cast(PlainContext, Plain())


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("origin") / "repository")


@pytest.fixture(params=["github", "gitea"])
def server(request: pytest.FixtureRequest, origin: Path, tmp_path: Path) -> Iterator[GitServerStub]:
    """A server with a repository of its own."""
    repository = tmp_path / "origin"
    shutil.copytree(origin, repository)
    with git_server(request.param, repository) as stub:
        yield stub


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fleet = tmp_path / "fleet"
    fleet.mkdir()
    monkeypatch.setenv("CODITECT_FLEET_ROOT", str(fleet))
    monkeypatch.setenv("CODITECT_GIT_HOSTS", "127.0.0.1")
    monkeypatch.setenv("CODITECT_PRIVATE_ADDRESSES", "git")
    monkeypatch.setenv("CODITECT_GIT_TOKEN", TOKEN)


def asked(server: GitServerStub, number: int = 7) -> ChangeRequest:
    return ChangeRequest(repo_url=f"{server.url}/ada/shop", pr_number=number)


def test_a_pull_request_is_read_with_its_diff_and_anew_at_another_head(server: GitServerStub) -> None:
    head = server.open(7, GOOD)
    change = read_change(asked(server))
    again = read_change(asked(server))
    with worktree(Path(change.repository), change.commit, "tree") as tree:
        files = sorted(path.name for path in tree.iterdir())

    assert (change.commit, change.lines, change.fork) == (head, 4, False)
    assert (change.url, change.title, change.author) == (f"{server.url}/ada/shop/pulls/7", "Add a discount", "ada")
    assert "sum(prices) * 0.9" in change.diff
    assert files == [".git", "app.py", "prices.py", "test_prices.py"]
    assert again == change
    assert change.model_dump_json().startswith(f'{{"url":"{change.url}"')  # lists of approvals show its beginning
    assert Path(change.repository).is_relative_to(os.environ["CODITECT_FLEET_ROOT"])

    server.open(7, GOOD)
    first = read_change(asked(server))
    moved = server.open(7, BROKEN)
    second = read_change(asked(server))

    assert (second.commit, second.commit != first.commit) == (moved, True)
    assert "SHOP_CURRENCY" in second.diff


@pytest.mark.parametrize("source", ["eve/shop", ""])
def test_a_branch_of_another_repository_is_a_fork_also_when_that_is_gone(server: GitServerStub, source: str) -> None:
    server.open(7, GOOD, source=source)

    assert read_change(asked(server)).fork


def test_checks_are_pending_and_then_a_review_with_a_comment_on_each_line(server: GitServerStub) -> None:
    head = server.open(7, GOOD)
    request = read_change(asked(server)).pull_request
    report_checks(ReportRequest(pull_request=request), CTX)
    place = {"dashboard": "https://fleet.example.com/", "approval": "ship_it"}
    done = [report_checks(ReportRequest(pull_request=request, checks=PASSED, **place), CTX) for _ in range(2)]

    [review] = server.reviews
    [comment] = review["comments"]
    link = "https://fleet.example.com/#/workflows/run-1?node=ship_it"
    line = {"line": 6, "side": "RIGHT"} if server.kind == "github" else {"new_position": 6, "old_position": 0}
    assert comment == {"path": "prices.py", "body": "**warning** `RUF046`: `'round' of an int`", **line}
    assert (review["commit_id"], link in review["body"]) == (head, True)
    assert [report.state for report in done] == [CheckState.SUCCESS] * 2
    assert [(one["context"], one["state"], one["commit"]) for one in server.statuses] == [
        ("coditect/checks", "pending", head), ("coditect/checks", "success", head), ("coditect/checks", "success", head)
    ]  # fmt: skip
    assert Plain.locks[-1] == f"review:{head}"  # two executions at once post one review, too
    assert server.statuses[-1]["target_url"] == link
    assert server.statuses[-1]["description"] == "0 error, 1 warning, 0 info; tests passed; 0 security findings"


def test_a_review_is_found_again_behind_a_page_of_others(server: GitServerStub) -> None:
    server.open(7, GOOD)
    request = read_change(asked(server)).pull_request
    server.page = 2
    server.reviews = [{"body": f"by a person, number {number}"} for number in range(3)]
    for _ in range(2):
        report_checks(ReportRequest(pull_request=request, checks=PASSED), CTX)

    assert len(server.reviews) == 4


RED = GREEN.model_copy(
    update={
        "verdict": SuiteOutcome.FAILED,
        "failures": [FailedTest(nodeid="test_a.py::test", message="@all `see` [this](http://evil.example)\nmore")],
    }
)
ERRORS = PASSED.review and PASSED.review.model_copy(update={"counts": COUNTS | {Severity.ERROR: 2}})
INSECURE = Scan(clean=False, findings=[FINDING.model_copy(update={"rule": "S602", "file": "app.py"})])


FAILURES: list[tuple[dict[str, Any], str]] = [
    ({"tests": RED}, "* `test_a.py::test`: `@all 'see' [this](http://evil.example)`"),
    ({"tests": None}, "no tests"),
    ({"review": ERRORS}, "2 error, 1 warning"),
    ({"review": None}, "no review"),
    ({"scan": INSECURE}, "* `app.py:6` **warning** `S602`"),
    ({"scan": None}, "no scan"),
]


@pytest.mark.parametrize("server", ["gitea"], indirect=True)
def test_a_check_that_failed_or_has_no_result_is_a_failure_that_says_so(server: GitServerStub) -> None:
    server.open(7, GOOD)
    request = read_change(asked(server)).pull_request
    for update, said in FAILURES:
        server.reviews.clear()
        report_checks(ReportRequest(pull_request=request, checks=PASSED.model_copy(update=update)), CTX)

        assert server.statuses[-1]["state"] == "failure"
        assert said in server.reviews[-1]["body"]


@pytest.mark.parametrize("server", ["github"], indirect=True)
def test_comments_on_lines_that_the_server_does_not_show_stand_in_the_review(server: GitServerStub) -> None:
    server.open(7, GOOD)
    far = FINDING.model_copy(update={"line": 999, "file": "`@all`.py"})
    review = Review(findings=[far], counts=COUNTS, files=1)
    request = read_change(asked(server)).pull_request
    report_checks(ReportRequest(pull_request=request, checks=PASSED.model_copy(update={"review": review})), CTX)

    [posted] = server.reviews
    assert posted["comments"] == []
    assert "* `'@all'.py:999` **warning** `RUF046`" in posted["body"]


@pytest.mark.parametrize("text", ["a\r\r@all", "a\n@all", " a\x0b@all", "a\u2028@all", "a"])
def test_a_text_of_the_change_stays_in_its_line_of_code(text: str) -> None:
    assert (as_code(text), as_code("``"), as_code("\n")) == ("`a`", "`''`", "` `")


@pytest.mark.parametrize("server", ["gitea"], indirect=True)
def test_a_release_that_fails_is_a_failure_of_the_pull_request(server: GitServerStub) -> None:
    head = server.open(7, GOOD)  # without a Dockerfile
    change = read_change(asked(server))
    service = ContainerSpec(container="shop", image="shop", port=1)
    request = DeployRequest(
        repository=change.repository, commit=head, service=service, pull_request=change.pull_request
    )
    with pytest.raises(CoditectError):
        release(request, CTX)

    assert [(one["context"], one["state"]) for one in server.statuses] == [("coditect/release", "failure")]


def test_a_branch_is_reported_to_nobody(server: GitServerStub) -> None:
    report = report_checks(ReportRequest(checks=PASSED), CTX)

    assert (report.state, report.reported, server.asked) == (CheckState.SUCCESS, False, [])


@pytest.mark.parametrize(
    ("status", "error"),
    [(503, Retryable), (429, Retryable), (401, SetupError), (403, SetupError), (404, NotFound), (301, InputError)],
)
@pytest.mark.parametrize("server", ["github"], indirect=True)
def test_a_refusal_says_whether_to_try_again(server: GitServerStub, status: int, error: type[CoditectError]) -> None:
    server.open(7, GOOD)
    server.answers = [status]

    with open_git_server(f"{server.url}/ada/shop", os.environ) as opened, pytest.raises(error) as refused:
        opened.pull_request(7)

    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("server", ["github"], indirect=True)
def test_a_server_that_throttles_or_is_down_is_asked_again(server: GitServerStub) -> None:
    server.open(7, GOOD)
    server.answers, server.message = [403], "API rate limit exceeded for user"
    with pytest.raises(Retryable):
        read_change(asked(server))
    with open_git_server(f"{server.url}/ada/shop", os.environ) as opened:
        pause = opened._refusal(HttpAnswer(429, b"", "120"))
    assert isinstance(pause, RetryAfter)
    assert pause.delay_seconds == 120
    server.pulls[7]["head"]["sha"] = "--upload-pack"
    with pytest.raises(Retryable, match="no pull request"):
        read_change(asked(server))


@pytest.mark.parametrize("server", ["gitea"], indirect=True)
def test_a_server_that_is_down_while_its_api_is_looked_for_is_asked_again(server: GitServerStub) -> None:
    server.open(7, GOOD)
    server.answers = [503]
    with pytest.raises(Retryable):
        read_change(asked(server))

    assert read_change(asked(server)).lines == 4


@pytest.mark.parametrize("server", ["github"], indirect=True)
def test_closed_missing_and_forbidden_pull_requests_fail(
    server: GitServerStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.open(7, GOOD, state="closed")
    for number, said in ((7, "not open"), (8, "no such")):
        with pytest.raises(InputError, match=said):
            read_change(asked(server, number))

    server.open(7, GOOD)
    monkeypatch.setenv("CODITECT_GIT_TOKEN", "another")
    with pytest.raises(SetupError, match="CODITECT_GIT_TOKEN"):
        read_change(asked(server))


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("CODITECT_GIT_HOSTS", "", InputError),
        ("CODITECT_GIT_HOSTS", "github.com", InputError),
        ("CODITECT_PRIVATE_ADDRESSES", "http", InputError),
        ("CODITECT_GIT_TOKEN", "two words", SetupError),
    ],
)
@pytest.mark.parametrize("server", ["github"], indirect=True)
def test_nothing_is_sent_where_the_settings_do_not_allow_it(
    server: GitServerStub, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, error: type[CoditectError]
) -> None:
    server.open(7, GOOD)
    monkeypatch.setenv(variable, value)

    with pytest.raises(error, match=variable):
        read_change(asked(server))

    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "git@github.com:ada/shop", "ssh://github.com/ada/shop", "https://user:word@github.com/ada/shop",
        "https://github.com/ada", "https://github.com/ada/shop?a=b", "https://github.com/../shop", "file:///etc/passwd",
        "https://github.com/ada/shop#x", "--upload-pack=id",
    ],
)  # fmt: skip
def test_what_is_no_url_of_a_repository_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="no URL of a repository"), open_git_server(url, {"CODITECT_GIT_HOSTS": "*"}):
        pass


def test_a_token_goes_over_an_open_line_only_in_a_network_of_ones_own() -> None:
    given = {"CODITECT_GIT_HOSTS": "*", "CODITECT_GIT_TOKEN": TOKEN}
    with pytest.raises(InputError, match="https"), open_git_server("http://git.example.com/ada/shop", given):
        pass
    for allowed in ({"CODITECT_PRIVATE_ADDRESSES": "git"}, {"CODITECT_GIT_TOKEN": ""}):
        with open_git_server("http://git.example.com/ada/shop", given | allowed) as server:
            assert server.url == "http://git.example.com/ada/shop"


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("https://github.com/ada/shop", "https://api.github.com"),
        ("https://github.com/ada/shop.git", "https://api.github.com"),
        ("https://blue.ghe.com/ada/shop/", "https://api.blue.ghe.com"),
    ],
)
def test_the_api_of_github_has_a_host_of_its_own(url: str, api: str) -> None:
    with open_git_server(url, {"CODITECT_GIT_HOSTS": "github.com,*.ghe.com"}) as server:
        assert server._api == api


@pytest.mark.parametrize("server", ["gitea"], indirect=True)
def test_git_connects_to_the_checked_address_whatever_its_own_settings_say(
    server: GitServerStub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.open(7, GOOD)
    evil = tmp_path / "gitconfig"
    evil.write_text('[url "http://127.0.0.1:1/"]\n\tinsteadOf = http://\n[http]\n\tproxy = http://127.0.0.1:1\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(evil))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with open_git_server(f"{server.url}/ada/shop", os.environ) as opened:
        options = opened.git_options()
    port = server.url.rpartition(":")[2]
    assert options["http.curloptResolve"] == f"127.0.0.1:{port}:127.0.0.1"
    # A name that no resolver knows: it leads here by the checked address alone.
    options["http.curloptResolve"] = f"git.invalid:{port}:127.0.0.1"
    fetch(tmp_path / "copy", f"http://git.invalid:{port}/ada/shop", {"refs/pull/7/head": "refs/heads/seven"}, options)

    assert commit_of(tmp_path / "copy", "seven") == server.pulls[7]["head"]["sha"]


@pytest.mark.parametrize("server", ["gitea"], indirect=True)
def test_a_commit_names_no_server_for_large_files(server: GitServerStub, monkeypatch: pytest.MonkeyPatch) -> None:
    work = ["git", "-C", str(server.repository)]
    subprocess.run([*work, "switch", "--quiet", "--create", "large", "main"], check=True)
    (server.repository / ".gitattributes").write_text("*.bin filter=lfs\n")
    (server.repository / "large.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    subprocess.run([*work, "add", "--all"], check=True)
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run([*work, *author, "commit", "--quiet", "--message", "large"], check=True)
    server.open(7, "large")
    config = server.repository.parent / "gitconfig"
    config.write_text('[filter "lfs"]\n\tsmudge = touch /nowhere/fetched\n\trequired = true\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    change = read_change(asked(server))

    with worktree(Path(change.repository), change.commit, "tree") as tree:
        assert (tree / "large.bin").read_text().startswith("version https://git-lfs")
