"""The agent that brings a change into production: reads, checks and releases it, probes the service, and rolls back.

A change is a branch of a git repository of its own machine, below the fleet's folder, or a pull request of a Git
server, which also gets the review and its checks' state. It is released to a folder, a container or a Deployment of
Kubernetes. `examples/pr_deployment.yaml` puts the steps in order. It has other people's code tested and started: run it
where that may happen.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.deployment.pull_requests import CheckState, LineComment, PullRequest, as_code, open_git_server
from agents.deployment.repository import commit_of, diff_of, fetch, worktree
from agents.deployment.targets import ContainerSpec, KubernetesSpec, target_of
from agents.reviewer import Review, ReviewRequest
from agents.tester import SuiteOutcome, TestsReport, TestsRequest
from agents.tools.diff import changed_lines
from agents.tools.review import Finding, Severity
from agents.tools.sources import confined, fleet_root
from coditect import Agent, CoditectError, PlainContext, Retry, TaskCanceled
from coditect.errors import InputError, Retryable

log = logging.getLogger(__name__)

deployer = Agent("deployer", version="1.0.0", slots=8, tags=frozenset({"release", "git"}))

RELEASED = "service.released"
"""The type of the event that tells of a release; its subject is the service's lock, its data `version`, `previous`."""
_COMMIT = Field(pattern=r"^[0-9a-f]{40,64}$", description="the hash of a commit", examples=["0" * 40])
_SECURITY = "S"
"""The first letter of ruff's rules about security, which come from bandit."""
_SWALLOWS = frozenset({"S110", "S112"})
"""Those of them about dropped exceptions, which are no matter of security."""
_TWICE = Retry(max_attempts=2, first="1s", cap="1m")
_PATIENT = Retry(max_attempts=8, first="1s", cap="1m")
_CHECKS, _RELEASE = "coditect/checks", "coditect/release"
"""The contexts of the statuses that a pull request's head gets."""
_MOST_COMMENTS, _MOST_LISTED = 50, 10
_LINK = re.compile(r"https?://[^\s()<>\"'`]{1,500}")


class _DeployerRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ChangeRequest(_DeployerRequest):
    """A request to read a change: a branch of a repository, or a pull request of a Git server."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"repository": ".", "branch": "main"}]})

    repository: str | None = Field(None, min_length=1, description="a git repository on the agent's machine")
    branch: str | None = Field(None, min_length=1, max_length=200)
    base: str = Field("main", min_length=1, max_length=200)
    repo_url: str | None = Field(None, min_length=1, max_length=500, description="a repository of a Git server")
    pr_number: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> ChangeRequest:
        local, remote = (self.repository, self.branch), (self.repo_url, self.pr_number)
        if (None in local) == (None in remote) or {*local, *remote} - {None} not in ({*local}, {*remote}):
            raise ValueError("give `repository` and `branch`, or `repo_url` and `pr_number`")
        return self


class Change(BaseModel):
    """A change: its last commit, the repository that has it, and the diff since it left its base."""

    url: str = ""
    """The page of the pull request; empty for a branch."""
    title: str = ""
    author: str = ""
    fork: bool = False
    """Whether the change comes from another repository than the one that it is for."""
    pull_request: PullRequest | None = None
    repository: str
    """The repository on the agent's machine: for a pull request, the one that it was fetched into."""
    commit: str
    lines: int
    """The number of lines that are added or removed."""
    diff: str


class CommitRequest(_DeployerRequest):
    """A request to check one commit."""

    repository: str = Field(min_length=1, description="a git repository on the agent's machine")
    commit: str = _COMMIT


class Scan(BaseModel):
    """The report of a security scan, with its findings."""

    clean: bool
    findings: list[Finding]


class Checks(_DeployerRequest):
    """The results of a change's checks; None for one that did not come to a result."""

    review: Review | None = None
    tests: TestsReport | None = None
    scan: Scan | None = None

    @property
    def passed(self) -> bool:
        """True when the review found no error, all tests passed, and the scan found nothing."""
        reviewed = self.review is not None and not self.review.counts.get(Severity.ERROR)
        tested = self.tests is not None and self.tests.verdict is SuiteOutcome.PASSED
        return reviewed and tested and self.scan is not None and self.scan.clean


class ReportRequest(_DeployerRequest):
    """A request to report the checks of a change to its pull request, if it is one: that they run, or their results."""

    pull_request: PullRequest | None = None
    checks: Checks | None = Field(None, description="the results; none: the checks have begun")
    dashboard: str | None = Field(None, description="the dashboard's address, for a link to the workflow")
    approval: str = Field("", max_length=200, description="the approval node that the link is to")


class Report(BaseModel):
    """The state that was reported, and whether there is a pull request that shows it."""

    state: CheckState
    reported: bool


class DeployRequest(_DeployerRequest):
    """A request to release a commit as a version of a service."""

    repository: str = Field(min_length=1, description="a git repository on the agent's machine")
    commit: str = _COMMIT
    service: str | ContainerSpec | KubernetesSpec = Field(
        description="the folder of a service on the agent's machine, a container, or a Deployment"
    )
    pull_request: PullRequest | None = Field(None, description="whose status says when it fails or is rolled back")


class Deployed(BaseModel):
    """The result of a release or a rollback: the service's version now, and the one before."""

    version: str
    previous: str | None


class Rollback(BaseModel):
    """The input of a compensation: the request and the result of the release to undo."""

    input: DeployRequest
    result: Deployed


class ProbeRequest(_DeployerRequest):
    """A request to wait until a service is well in a version."""

    service: str | ContainerSpec | KubernetesSpec = Field(description="as in `service.release`")
    version: str = _COMMIT
    pull_request: PullRequest | None = Field(None, description="whose status says that it was released")


class ServiceHealth(BaseModel):
    """A service that is well: its version, and where it answers."""

    version: str
    url: str


@deployer.capability(
    "change.read", timeout="8m", retry=_PATIENT, description="Reads what a branch or a pull request changes."
)
def read_change(task: ChangeRequest) -> Change:
    """Return the commit and the diff of a change since it left its base; a pull request is fetched from its server.

    Raises:
        InputError: not retryable; there is no such branch or open pull request, or no diff to review.
        Retryable: the Git server does not answer, or the pull request moved on meanwhile.
    """
    if task.repo_url is not None and task.pr_number is not None:
        return _read_pull_request(task.repo_url, task.pr_number)
    repository = Path(confined(task.repository or ""))
    commit, base = commit_of(repository, task.branch or ""), commit_of(repository, task.base)
    diff = diff_of(repository, base, commit)
    return Change(repository=str(repository), commit=commit, diff=diff, lines=changed_lines(diff))


def _read_pull_request(repo_url: str, number: int) -> Change:
    """Fetch a pull request's head and base; the diff is git's own, since a server's leaves out what is large."""
    with open_git_server(repo_url, os.environ) as server:
        request = server.pull_request(number)
        repository = fleet_root() / ".coditect" / "repositories" / f"{server.path}.git"
        head, base = f"refs/pull/{number}/head", f"refs/heads/{request.base}"
        fetch(repository, server.url, {head: head, base: base}, server.git_options())
    try:
        commit = commit_of(repository, request.commit)
    except InputError as error:
        raise Retryable("The pull request has another head by now", url=request.url) from error
    diff = diff_of(repository, base, commit)
    return Change(
        url=request.url,
        title=request.title,
        author=request.author,
        fork=request.fork,
        pull_request=request,
        repository=str(repository),
        commit=commit,
        lines=changed_lines(diff),
        diff=diff,
    )


@deployer.capability(
    "change.test", timeout="6m", retry=_TWICE, description="Runs a commit's tests in a fresh worktree."
)
def test_change(task: CommitRequest, ctx: PlainContext) -> TestsReport:
    """Have a tester run the tests of a commit in a worktree of its own; red tests are a result, no failure."""
    with worktree(Path(confined(task.repository)), task.commit, f"test-{_name(ctx)}") as tree:
        return ctx.request("tests.run", TestsRequest(root=str(tree)), TestsReport, timeout="5m")


@deployer.capability("change.scan", timeout="6m", retry=_TWICE, description="Scans a commit for insecure code.")
def scan_change(task: CommitRequest, ctx: PlainContext) -> Scan:
    """Have a reviewer read a commit in a worktree of its own, and keep what is about security."""
    with worktree(Path(confined(task.repository)), task.commit, f"scan-{_name(ctx)}") as tree:
        review = ctx.request("code.review", ReviewRequest(path=str(tree)), Review, timeout="5m")
    found = [
        finding.model_copy(update={"file": finding.file.removeprefix(f"{tree}/")})
        for finding in review.findings
        if finding.rule.startswith(_SECURITY) and finding.rule[1:].isdigit() and finding.rule not in _SWALLOWS
    ]
    return Scan(clean=not found, findings=found)


@deployer.capability(
    "change.report", timeout="5m", retry=_PATIENT, description="Reports a change's checks to its pull request."
)
def report_checks(task: ReportRequest, ctx: PlainContext) -> Report:
    """Set the status check of a pull request's head and, with results, post a review with comments on lines.

    A branch has nowhere to report to; its state is returned all the same. A review is posted once by a task.

    Raises:
        SetupError: not retryable; the token may not write.
        Retryable: the Git server does not answer.
    """
    checks, request = task.checks, task.pull_request
    state = CheckState.PENDING if checks is None else CheckState.SUCCESS if checks.passed else CheckState.FAILURE
    if request is None:
        return Report(state=state, reported=False)
    link = _link(task, ctx)
    with ctx.lock(f"review:{request.commit}"), open_git_server(request.repo_url, os.environ) as server:
        if checks is not None:
            found = checks.review.findings[:_MOST_COMMENTS] if checks.review else []
            comments = [LineComment(path=remark.file, line=remark.line, text=_remark(remark)) for remark in found]
            server.review(request, "\n".join(_review_text(checks, link)), comments, mark=ctx.task_id)
        description = "running" if checks is None else "; ".join(_summary(checks))
        server.set_status(request.commit, state, context=_CHECKS, description=description, link=link)
    return Report(state=state, reported=True)


def _link(task: ReportRequest, ctx: PlainContext) -> str:
    """Return the address of the workflow in the dashboard; empty if the request names no dashboard."""
    dashboard = task.dashboard or ""
    if not _LINK.fullmatch(dashboard):
        return ""
    node = f"?node={quote(task.approval)}" if task.approval else ""
    return f"{dashboard.rstrip('/')}/#/workflows/{quote(ctx.requester.removeprefix('workflow:'))}{node}"


def _summary(checks: Checks) -> Iterator[str]:
    if checks.review is None:
        yield "no review"
    else:
        yield ", ".join(f"{checks.review.counts.get(severity, 0)} {severity}" for severity in Severity)
    yield f"tests {checks.tests.verdict}" if checks.tests else "no tests"
    yield "no scan" if checks.scan is None else f"{len(checks.scan.findings)} security findings"


def _review_text(checks: Checks, link: str) -> Iterator[str]:
    """Yield the lines of a review's text: a summary, then red tests and security findings, the first ten of each."""
    yield f"**{'The checks passed' if checks.passed else 'The checks failed'}**: {'; '.join(_summary(checks))}."
    if link:
        yield f"\n[Follow the deployment, or answer its approval]({link})"
    if checks.tests is not None and checks.tests.failures:
        yield "\nRed tests:\n"
        yield from (
            f"* {as_code(test.nodeid)}: {as_code(test.message)}" for test in checks.tests.failures[:_MOST_LISTED]
        )
    if checks.scan is not None and checks.scan.findings:
        yield "\nSecurity, in all of the code:\n"
        for found in checks.scan.findings[:_MOST_LISTED]:
            yield f"* {as_code(f'{found.file}:{found.line}')} {_remark(found)}"


def _remark(found: Finding) -> str:
    return f"**{found.severity}** {as_code(found.rule)}: {as_code(found.message)}"


@deployer.capability(
    "service.release", timeout="25m", retry=_TWICE, description="Releases a commit as a service's version."
)
def release(task: DeployRequest, ctx: PlainContext) -> Deployed:
    """Release a commit to a folder, a container or a Deployment; see `agents/deployment/targets.py`.

    Idempotent by the task's id: another attempt finds what was there before the first one. A release that fails, or is
    canceled, leaves what was there before.

    Raises:
        InputError: not retryable; there is no such commit, or no such service.
        LockExpired: retryable; another release took too long.
    """
    try:
        return _release(task, ctx)
    except CoditectError:
        _report_release(task.pull_request, CheckState.FAILURE, "not released")
        raise


def _release(task: DeployRequest, ctx: PlainContext) -> Deployed:
    target, repository = target_of(task.service), Path(confined(task.repository))
    with worktree(repository, task.commit, f"release-{_name(ctx)}") as tree:
        target.prepare(task.commit, tree)
        with ctx.lock(target.name):  # as each call, it ends a release that was canceled
            previous = target.release(task.commit, tree, _name(ctx))
            try:
                ctx.emit(RELEASED, subject=target.name, version=task.commit, previous=previous)
            except TaskCanceled:
                target.roll_back(task.commit, previous)
                raise
    return Deployed(version=task.commit, previous=previous)


@deployer.capability("service.rollback", timeout="10m", retry=Retry(max_attempts=5, first="1s", cap="1m"))
def roll_back(task: Rollback, ctx: PlainContext) -> Deployed:
    """Go back to the version before a release, and wait until it is well. Does no harm twice.

    A service that has another version by now is left alone.

    Raises:
        InputError: not retryable; the result names no version.
        TaskFailed: the version before is not well either; a person must look.
    """
    target = target_of(task.input.service)
    with ctx.lock(target.name):
        version = target.roll_back(task.result.version, task.result.previous)
    said = "rolled back" if version == task.result.previous else "not well, and replaced by another version"
    _report_release(task.input.pull_request, CheckState.FAILURE, said)
    return Deployed(version=version or "", previous=task.result.version)


@deployer.capability(
    "service.probe",
    timeout="10m",
    retry=_TWICE,
    description="Waits until a service is well in a version.",
)
def probe(task: ProbeRequest) -> ServiceHealth:
    """Return where the service answers, once it is well in the version.

    Raises:
        TaskFailed: it is not in time, or its process ended; with the end of its log.
    """
    url = target_of(task.service).probe(task.version)
    _report_release(task.pull_request, CheckState.SUCCESS, f"released {task.version[:12]}")
    return ServiceHealth(version=task.version, url=url)


def _report_release(request: PullRequest | None, state: CheckState, description: str) -> None:
    """Set the status of a release once, at most: a Git server that is away must not have the release rolled back."""
    if request is None:
        return
    try:
        with open_git_server(request.repo_url, os.environ) as server:
            server.set_status(request.commit, state, context=_RELEASE, description=description)
    except CoditectError as error:
        log.warning("The Git server did not take the status of a release", extra={"reason": str(error)})


def _name(ctx: PlainContext) -> str:
    return ctx.task_id.replace(":", "-").replace("/", "-")
