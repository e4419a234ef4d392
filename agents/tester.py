"""The agent that runs pytest in a process group of its own, within limits, without the agent's secrets.

The agent executes code: anyone who may submit tasks and write files in the fleet's folder can have it run anything, as
the agent's user. So `coditect up` starts the agent only when it is named. The limits are a fence against accidents
(endless loops, memory, floods of output), no sandbox.

The tested code could write pytest's JUnit report, so its reader trusts nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree

from pydantic import BaseModel, ConfigDict, Field

from agents.tools.child import Exit, run_child
from agents.tools.sources import confined
from coditect import Agent, Context, Retry
from coditect.aio import launch
from coditect.errors import InputError, SetupError

_MAX_REPORT_BYTES = 16_777_216


@dataclass(slots=True)
class Case:
    """A test in a report, with its outcome: passed, failed, errored or skipped."""

    nodeid: str
    outcome: str
    message: str = ""


def read_junit(path: Path) -> list[Case] | None:
    """Return the tests of a JUnit report file; None for a missing or untrustworthy one, never an error.

    Refused: more than 16 MiB, and any document type declaration (no entity is ever expanded).
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_REPORT_BYTES:
        return None
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        return None
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - bounded, and without entities
    except ElementTree.ParseError:
        return None
    return list(_cases(root))


def _cases(root: ElementTree.Element) -> Iterator[Case]:
    for element in root.iter("testcase"):
        case = Case(_nodeid(element), "passed")
        # A test that failed and whose teardown then broke has both; the failure is the news.
        for tag, outcome in (("skipped", "skipped"), ("error", "errored"), ("failure", "failed")):
            found = element.find(tag)
            if found is not None:
                case.outcome, case.message = outcome, _message(found)
        yield case


def _nodeid(element: ElementTree.Element) -> str:
    file, classname, name = (element.get(key, "") for key in ("file", "classname", "name"))
    if not file:
        return "::".join(part for part in (classname, name) if part)
    module = file.removesuffix(".py").replace("/", ".")
    classes = classname.removeprefix(module).strip(".").split(".") if classname.startswith(module) else []
    return "::".join(part for part in (file, *classes, name) if part)


def _message(element: ElementTree.Element) -> str:
    return (element.get("message") or element.text or "").strip()


tester = Agent("tester", version="1.0.0", slots=16, tags=frozenset({"python", "tests"}))

_FILE_BYTES = 33_554_432
STARTED_BY = "CODITECT_STARTED_BY"  # no secret: by it a supervisor finds and ends what its agents left behind
_KEPT_VARIABLES = frozenset({"PATH", "LANG", "LANGUAGE", "TZ", "PYTHONPATH", "VIRTUAL_ENV", "SYSTEMROOT", STARTED_BY})
_USAGE_ERROR, _NO_TESTS = 4, 5


class TestsRequest(BaseModel):
    """A request to run tests: which tests, and how much time and memory they may use."""

    __test__ = False
    model_config = ConfigDict(extra="forbid")

    root: str = Field(".", min_length=1, description="the project's folder on the agent's machine")
    paths: list[str] = Field([], max_length=200, description="files, folders or test ids below root; none: all")
    keyword: str = Field("", max_length=500, description="pytest's -k expression")
    timeout_seconds: float = Field(120, gt=0, le=280, description="wall clock for all of it")
    cpu_seconds: int = Field(120, ge=1, le=600, description="processor time of each process")
    memory_mib: int = Field(2048, ge=128, le=65_536, description="address space of each process")


class SuiteOutcome(StrEnum):
    """The end of a whole test run: passed, failed, no tests, broken by a conftest.py, timed out, or killed."""

    PASSED = "passed"
    FAILED = "failed"
    NO_TESTS = "no_tests"
    BROKEN = "broken"
    """No test ran, because a conftest.py fails; `TestsReport.output` shows the reason."""

    TIMED_OUT = "timed_out"
    KILLED = "killed"
    """The run crashed or was killed by a limit, so that its report is missing or cut off."""


class FailedTest(BaseModel):
    """A test that failed, or that could not run."""

    nodeid: str
    message: str
    """The first 2,000 characters of the failure's message."""


class TestsReport(BaseModel):
    """The counts of a test run, and the first 50 failures."""

    __test__ = False

    verdict: SuiteOutcome
    passed: int
    failed: int
    errors: int
    skipped: int
    duration_seconds: float
    failures: list[FailedTest]
    output: str = ""
    """The end of the console output, at most 8 KiB; empty when the run ended normally."""


@tester.capability(
    "tests.run",
    timeout="5m",
    retry=Retry(max_attempts=2, first="1s", cap="1m"),
    description="Executes code on the agent's machine: runs pytest, with time, processor and memory limits.",
    tags=frozenset({"python", "pytest"}),
    cost=5.0,
)
async def run_tests(task: TestsRequest, ctx: Context) -> TestsReport:
    """Run pytest within limits, and report failed, crashed and endless tests. A cancel kills pytest and its children.

    At least once: the tests may run again after a fault, so they must stand that.

    Raises:
        InputError: not retryable; a path does not exist, or pytest did not accept the selection.
        SetupError: not retryable; pytest is not installed beside the agent.
    """
    root = await asyncio.to_thread(_check_paths, task)
    home = ctx.workspace / "home"
    await asyncio.to_thread(home.mkdir, exist_ok=True)
    await ctx.progress(0.1, "pytest runs")
    report = ctx.workspace / "junit.xml"
    began = time.monotonic()
    ended = await run_child(
        [*_limits(task), *_pytest(task, report)],
        folder=root,
        log=ctx.workspace / "pytest.log",
        timeout_seconds=task.timeout_seconds,
        environment=clean_environment(os.environ, home),
    )
    duration = time.monotonic() - began
    return _report(await asyncio.to_thread(read_junit, report), ended, duration)


def clean_environment(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """Return a child process's variables: PATH, language, few others, `home` as HOME and TMPDIR, but no secrets."""
    kept = {key: value for key, value in environment.items() if key in _KEPT_VARIABLES or key.startswith("LC_")}
    return kept | {"HOME": str(home), "TMPDIR": str(home)}


def _check_paths(task: TestsRequest) -> Path:
    root = Path(confined(task.root)).resolve()
    if not root.is_dir():
        raise InputError("no such folder on the agent's machine; give one that the agent can read", root=task.root)
    for path in task.paths:
        file = (root / path.split("::")[0]).resolve()
        if not file.is_relative_to(root) or not file.exists():
            raise InputError("no such test file or folder below root; give paths relative to root", path=path)
    return root


def _limits(task: TestsRequest) -> list[str]:
    """Return the command prefix that sets limits and makes the tests die with the agent."""
    program = Path(__file__).with_name("tools") / "limits.py"
    return [
        sys.executable, "-I", "-S", launch.__file__, str(os.getpid()),
        sys.executable, "-I", str(program), "--cpu-seconds", str(task.cpu_seconds),
        "--memory-bytes", str(task.memory_mib * 1_048_576), "--file-bytes", str(_FILE_BYTES), "--",
    ]  # fmt: skip


def _pytest(task: TestsRequest, report: Path) -> list[str]:
    keyword = ["-k", task.keyword] if task.keyword else []
    return [
        sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "--color", "no",
        "-o", "junit_family=xunit1", "--junitxml", str(report.resolve()), *keyword, "--", *task.paths,
    ]  # fmt: skip


def _report(cases: list[Case] | None, ended: Exit, duration: float) -> TestsReport:
    verdict = _verdict(cases, ended)
    counts = Counter(case.outcome for case in cases or ())
    bad = [case for case in cases or () if case.outcome in {"failed", "errored"}]
    return TestsReport(
        verdict=verdict,
        passed=counts["passed"],
        failed=counts["failed"],
        errors=counts["errored"],
        skipped=counts["skipped"],
        duration_seconds=round(duration, 3),
        failures=[FailedTest(nodeid=case.nodeid[:500], message=case.message[:2000]) for case in bad[:50]],
        output="" if verdict in {SuiteOutcome.PASSED, SuiteOutcome.FAILED} else ended.tail,
    )


def _verdict(cases: list[Case] | None, ended: Exit) -> SuiteOutcome:
    if ended.timed_out:
        return SuiteOutcome.TIMED_OUT
    if ended.code == _NO_TESTS:
        return SuiteOutcome.NO_TESTS
    if ended.code == _USAGE_ERROR and "loading conftest" in ended.tail:
        return SuiteOutcome.BROKEN
    if ended.code == _USAGE_ERROR:
        raise InputError("pytest did not accept the selection", output=ended.tail)
    if "No module named pytest" in ended.tail and cases is None:
        raise SetupError("pytest is missing; install it beside the agent: pip install pytest")
    if ended.code not in {0, 1, 2} or cases is None:
        return SuiteOutcome.KILLED
    return SuiteOutcome.PASSED if ended.code == 0 else SuiteOutcome.FAILED
