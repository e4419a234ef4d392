from __future__ import annotations

import asyncio
import functools
import os
import time
from pathlib import Path

import psutil
import pytest

from agents.tester import SuiteOutcome, TestsRequest, read_junit, run_tests
from coditect import Context
from coditect.errors import InputError
from tests.support import eventually

QUICK = "[pytest]\naddopts = -p no:langsmith_plugin -p no:schemathesis -p no:hypothesispytest\n"
"""Without plug-ins that take most of the time in which pytest starts."""


def write_tests(folder: Path, text: str) -> str:
    (folder / "pytest.ini").write_text(QUICK)
    (folder / "test_sample.py").write_text(text)
    return str(folder)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def written(file: Path) -> str:
    return file.read_text() if file.exists() else ""


async def test_run_counts_each_outcome_names_the_failures_and_shows_no_secret(
    project: Path, ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODITECT_AMQP_URL", "amqp://user:secret@host")
    root = write_tests(
        project,
        "import os, pytest\n"
        "@pytest.fixture\ndef broken(): raise RuntimeError('no fixture')\n"
        "class TestMany:\n    @pytest.mark.parametrize('n', [1, 2])\n"
        "    def test_number(self, n): assert n == 1, 'odd'\n"
        "def test_error(broken): ...\n"
        "def test_skipped(): pytest.skip('later')\n"
        "def test_environment():\n"
        "    assert 'CODITECT_AMQP_URL' not in os.environ\n"
        f"    assert os.environ['HOME'] != {os.environ.get('HOME', '')!r}\n",
    )

    report = await run_tests(TestsRequest(root=root), ctx)
    by_id = await run_tests(TestsRequest(root=root, paths=["test_sample.py::TestMany::test_number[1]"]), ctx)
    by_keyword = await run_tests(TestsRequest(root=root, keyword="environment"), ctx)

    assert report.verdict is SuiteOutcome.FAILED
    assert (report.passed, report.failed, report.errors, report.skipped) == (2, 1, 1, 1)
    failed = {failure.nodeid: failure.message for failure in report.failures}
    assert "odd" in failed["test_sample.py::TestMany::test_number[2]"]
    assert "no fixture" in failed["test_sample.py::test_error"]
    assert report.duration_seconds > 0
    assert [(one.verdict, one.passed) for one in (by_id, by_keyword)] == [(SuiteOutcome.PASSED, 1)] * 2


async def test_run_without_tests_says_so(project: Path, ctx: Context) -> None:
    assert (await run_tests(TestsRequest(root=str(project)), ctx)).verdict is SuiteOutcome.NO_TESTS


@pytest.mark.proof
async def test_run_over_its_time_is_killed_with_its_children(project: Path, ctx: Context) -> None:
    pids = project / "pids"
    root = write_tests(
        project,
        "import os, pathlib, subprocess, time\n"
        "def test_endless():\n"
        "    child = subprocess.Popen(['sleep', '300'])\n"
        f"    pathlib.Path({str(pids)!r}).write_text(f'{{os.getpid()}} {{child.pid}}')\n"
        "    time.sleep(300)\n",
    )

    for seconds in (6, 60):  # pytest takes longer than the first to start on a busy machine
        began = time.monotonic()
        report = await run_tests(TestsRequest(root=root, timeout_seconds=seconds), ctx)
        took = time.monotonic() - began
        if written(pids):
            break

    assert report.verdict is SuiteOutcome.TIMED_OUT
    assert took < seconds + 60
    assert written(pids)
    for pid in written(pids).split():
        await eventually(functools.partial(is_gone, int(pid)))


async def test_cancelled_run_leaves_no_process(project: Path, ctx: Context) -> None:
    pids = project / "pids"
    root = write_tests(
        project,
        "import os, pathlib, time\n"
        f"def test_endless():\n    pathlib.Path({str(pids)!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(300)\n",
    )
    running = asyncio.ensure_future(run_tests(TestsRequest(root=root), ctx))
    await eventually(lambda: written(pids))
    pid = int(written(pids))

    running.cancel()

    with pytest.raises(asyncio.CancelledError):
        await running
    await eventually(lambda: is_gone(pid))


async def test_run_over_its_memory_fails_and_is_reported(project: Path, ctx: Context) -> None:
    root = write_tests(project, "def test_greedy(): bytearray(2**31)\n")

    report = await run_tests(TestsRequest(root=root, memory_mib=512), ctx)

    assert report.verdict is SuiteOutcome.FAILED
    assert "MemoryError" in report.failures[0].message


@pytest.mark.proof
async def test_run_over_its_processor_time_is_killed_and_says_so(project: Path, ctx: Context) -> None:
    root = write_tests(project, "def test_busy():\n    while True: ...\n")

    assert (await run_tests(TestsRequest(root=root, cpu_seconds=2), ctx)).verdict is SuiteOutcome.KILLED


async def test_flood_of_output_stays_within_the_bounds(project: Path, ctx: Context) -> None:
    root = write_tests(
        project,
        "import os\ndef test_flood():\n    assert False, 'x' * 100_000\n"
        "def test_crash():\n    os.write(2, b'y' * 100_000); os._exit(77)\n",
    )

    failed = await run_tests(TestsRequest(root=root, keyword="flood"), ctx)
    crashed = await run_tests(TestsRequest(root=root, keyword="crash"), ctx)

    assert len(failed.failures[0].message) <= 2000
    assert crashed.verdict is SuiteOutcome.KILLED
    assert len(crashed.output) <= 8192


async def test_run_of_an_unknown_test_id_is_refused(project: Path, ctx: Context) -> None:
    root = write_tests(project, "def test_one(): ...\n")

    with pytest.raises(InputError, match="did not accept"):
        await run_tests(TestsRequest(root=root, paths=["test_sample.py::test_nine"]), ctx)


async def test_run_with_a_broken_conftest_says_why(project: Path, ctx: Context) -> None:
    (project / "conftest.py").write_text("import nowhere_at_all\n")
    root = write_tests(project, "def test_one(): ...\n")

    report = await run_tests(TestsRequest(root=root), ctx)

    assert report.verdict is SuiteOutcome.BROKEN
    assert "nowhere_at_all" in report.output


@pytest.mark.parametrize("text", ["", "<testsuite", '<!DOCTYPE x [<!ENTITY a "b">]><testsuite/>'])
def test_report_that_cannot_be_trusted_is_not_read(text: str, tmp_path: Path) -> None:
    file = tmp_path / "junit.xml"
    file.write_text(text)

    assert read_junit(file) is None


@pytest.mark.parametrize(
    ("root", "paths", "said"),
    [
        (".", ["missing.py"], "below root"),
        (".", ["../outside"], "below root"),
        (".", ["/etc"], "below root"),
        ("nowhere", [], "no such folder"),
    ],
)
async def test_run_of_a_path_that_is_not_there_or_not_below_root_is_refused(
    root: str, paths: list[str], said: str, project: Path, ctx: Context
) -> None:
    with pytest.raises(InputError, match=said):
        await run_tests(TestsRequest(root=str(project / root), paths=paths), ctx)
