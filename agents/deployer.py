"""The agent that brings a branch into production: reads, checks and releases it, probes the service, and rolls back.

It works on git repositories and services of its own machine, below the fleet's folder. `examples/pr_deployment.yaml`
puts the steps in order. It has other people's code tested and started: run it where that may happen.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from agents.deployment.repository import commit_of, diff_of, worktree
from agents.deployment.service import Service
from agents.review.findings import Finding
from agents.reviewer import Review, ReviewRequest
from agents.tester import TestsReport, TestsRequest
from agents.tools.confined import confined
from agents.tools.diff import changed_lines
from coditect import Agent, PlainContext, Retry

deployer = Agent("deployer", version="1.0.0", slots=8, tags=frozenset({"release", "git"}))

_COMMIT = Field(pattern=r"^[0-9a-f]{40,64}$", description="the hash of a commit")
_SECURITY = "S"
"""The first letter of ruff's rules about security, which come from bandit."""
_TWICE = Retry(max_attempts=2, first="1s", cap="1m")
_PROBE_SECONDS = 10.0


class _DeployerRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ChangeRequest(_DeployerRequest):
    """A request to read what a branch changes."""

    repository: str = Field(min_length=1, description="a git repository on the agent's machine")
    branch: str = Field(min_length=1, max_length=200)
    base: str = Field("main", min_length=1, max_length=200)


class BranchChange(BaseModel):
    """A branch's change: its present commit, and the diff since it left its base."""

    commit: str
    diff: str
    lines: int
    """The number of lines that are added or removed."""


class CommitRequest(_DeployerRequest):
    """A request to check one commit."""

    repository: str = Field(min_length=1, description="a git repository on the agent's machine")
    commit: str = _COMMIT


class Scan(BaseModel):
    """The report of a security scan, with its findings."""

    clean: bool
    findings: list[Finding]


class DeployRequest(_DeployerRequest):
    """A request to release a commit as a version of a service."""

    repository: str = Field(min_length=1, description="a git repository on the agent's machine")
    commit: str = _COMMIT
    service: str = Field(min_length=1, description="the folder of a service on the agent's machine")


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

    service: str = Field(min_length=1, description="the folder of a service on the agent's machine")
    version: str = _COMMIT


class ServiceHealth(BaseModel):
    """A service that is well: its version, and where it answers."""

    version: str
    url: str


@deployer.capability("change.read", timeout="2m", description="Reads what a branch of a git repository changes.")
def read_change(task: ChangeRequest) -> BranchChange:
    """Return the commit and the diff of a branch since it left its base. Reads only.

    Raises:
        InputError: not retryable; there is no such branch, or no diff to review.
    """
    repository = Path(confined(task.repository))
    commit, base = commit_of(repository, task.branch), commit_of(repository, task.base)
    diff = diff_of(repository, base, commit)
    return BranchChange(commit=commit, diff=diff, lines=changed_lines(diff))


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
    found = [one for one in review.findings if one.rule.startswith(_SECURITY) and one.rule[1:].isdigit()]
    return Scan(clean=not found, findings=found)


@deployer.capability(
    "service.release", timeout="2m", retry=_TWICE, description="Releases a commit as a service's version, and restarts."
)
def release(task: DeployRequest, ctx: PlainContext) -> Deployed:
    """Put a commit into a version's folder, switch to it by one rename, and restart the service.

    Idempotent by the task's id: another attempt finds what was there before the first one.

    Raises:
        InputError: not retryable; there is no such commit, or no such service.
        LockExpired: retryable; another release took too long.
    """
    service, repository = Service(Path(confined(task.service))), Path(confined(task.repository))
    with ctx.lock(f"service:{service.folder.resolve()}"):
        before = service.note(f"before-{_name(ctx)}", service.version or "")
        with worktree(repository, task.commit, f"release-{_name(ctx)}") as tree:
            service.release_folder(task.commit).parent.mkdir(parents=True, exist_ok=True)
            service.install(task.commit, tree)
        service.switch(task.commit)
    return Deployed(version=task.commit, previous=before or None)


@deployer.capability("service.rollback", timeout="2m", retry=Retry(max_attempts=5, first="1s", cap="1m"))
def roll_back(task: Rollback, ctx: PlainContext) -> Deployed:
    """Switch a service back to the version before a release, and wait until it is well. Does no harm twice.

    A service that has another version by now is left alone.

    Raises:
        InputError: not retryable; the result names no version.
        TaskFailed: the version before is not well either; a person must look.
    """
    service = Service(Path(confined(task.input.service)))
    with ctx.lock(f"service:{service.folder.resolve()}"):
        if service.version in (task.result.version, task.result.previous):
            service.switch(task.result.previous)
            if task.result.previous is not None:
                service.probe(task.result.previous, within_seconds=_PROBE_SECONDS)
    return Deployed(version=service.version or "", previous=task.result.version)


@deployer.capability(
    "service.probe",
    timeout="1m",
    retry=Retry(max_attempts=1),
    description="Waits until a service is well in a version.",
)
def probe(task: ProbeRequest) -> ServiceHealth:
    """Return where the service answers, once it is well in the version.

    Raises:
        TaskFailed: it is not within ten seconds, or its process ended; with the end of its log.
    """
    service = Service(Path(confined(task.service)))
    service.probe(task.version, within_seconds=_PROBE_SECONDS)
    return ServiceHealth(version=task.version, url=f"http://127.0.0.1:{service.port}")


def _name(ctx: PlainContext) -> str:
    return ctx.task_id.replace(":", "-").replace("/", "-")
