"""The agent that reviews Python code with ruff.

``{"path": "coditect/model"}`` reviews files of a repository that the agent can read, ``{"diff": "…"}`` the
lines that a unified diff adds. ``{"roots": ["."]}`` finds the packages that there are to review.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.tools.diff import parse_diff, write_hunks
from agents.tools.review import Finding, Severity, lint, worst_first
from agents.tools.sources import SourceFile, confined, find_packages, find_sources
from coditect import Agent, Context, Retry

reviewer = Agent("reviewer", version="1.0.0", slots=48, tags=frozenset({"python", "quality"}))


class ReviewRequest(BaseModel):
    """A request for a review of Python code, given by exactly one of `path` and `diff`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"path": "agents"}]})

    path: str | None = Field(None, min_length=1, description="file or folder on the agent's machine")
    globs: list[str] = Field(["**/*.py"], max_length=50, description="which files of a folder")
    diff: str | None = Field(None, min_length=1, description="unified diff; only added lines are reported")
    max_findings: int = Field(500, ge=1, le=2000, description="the worst ones are kept; counts are of all")

    @model_validator(mode="after")
    def _one_subject(self) -> ReviewRequest:
        if (self.path is None) == (self.diff is None):
            raise ValueError("give exactly one of `path` and `diff`")
        return self


class Review(BaseModel):
    """The findings of a code review, worst first, with counts."""

    findings: list[Finding]
    counts: dict[Severity, int]
    """The number of findings by severity, including findings that were left out."""

    files: int
    """The number of files, or of a diff's hunks, that were reviewed."""

    unparsed: list[str] = []
    """The files that do not parse, about which most rules say nothing."""

    truncated: bool = False


class PackagesRequest(BaseModel):
    """A request to list the Python packages in some folders."""

    model_config = ConfigDict(extra="forbid")

    roots: list[str] = Field(min_length=1, max_length=50, description="folders on the agent's machine")


@reviewer.capability(
    "code.packages",
    timeout="1m",
    description="Lists the Python packages at and below some folders.",
    tags=frozenset({"python"}),
)
def packages(task: PackagesRequest) -> list[str]:
    """Return the paths of the Python packages in the folders, sorted. Reads only.

    Raises:
        InputError: not retryable; a folder does not exist here, or there is no package.
    """
    return find_packages([confined(root) for root in task.roots])


@reviewer.capability(
    "code.review",
    timeout="5m",
    retry=Retry(max_attempts=3, first="1s", cap="1m"),
    description="Reviews Python code at a path, or the lines a diff adds, with ruff.",
    tags=frozenset({"python", "lint"}),
    cost=1.0,
)
async def review(task: ReviewRequest, ctx: Context) -> Review:
    """Review Python code: findings with file, line, severity and rule. Reads only, so it may run twice.

    Raises:
        InputError: not retryable; the path does not exist here, nothing matches, or the text is no diff.
        SetupError: not retryable; ruff is missing.
    """
    sources = await asyncio.to_thread(_collect, task, ctx)
    if not sources:
        return _report([], sources, unparsed=[], task=task)
    await ctx.progress(0.2, f"ruff over {len(sources)} files")
    findings, unparsed = await lint(sources, ctx.workspace)
    return _report(findings, sources, unparsed=unparsed, task=task)


def _collect(task: ReviewRequest, ctx: Context) -> list[SourceFile]:
    if task.diff is not None:
        return write_hunks(parse_diff(task.diff), ctx.workspace)
    return find_sources(confined(task.path or ""), task.globs)


def _report(
    findings: list[Finding], sources: Sequence[SourceFile], *, unparsed: list[str], task: ReviewRequest
) -> Review:
    counts = Counter(found.severity for found in findings)
    return Review(
        findings=worst_first(findings)[: task.max_findings],
        counts={severity: counts[severity] for severity in Severity},
        files=len(sources),
        unparsed=unparsed[:100],
        truncated=len(findings) > task.max_findings,
    )
