"""Whether a process that dies again and again is given up is a matter of deaths, not of how long each start takes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from coditect.agent import processes
from coditect.agent.processes import BEGAN, MOST_DEATHS, Processes
from tests.support import eventually

SLOW_START = "import sys, time; open(sys.argv[1], 'a').write('x'); time.sleep(0.3); sys.exit(3)"
WORKS_AND_DIES = f"import os, pathlib; pathlib.Path(os.environ['{BEGAN}']).touch(); {SLOW_START}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(processes, "HEALTHY_SECONDS", 0.2)


def lives(path: Path) -> int:
    return len(path.read_text()) if path.exists() else 0


async def test_process_that_starts_slowly_and_never_works_is_given_up(tmp_path: Path) -> None:
    told = tmp_path / "lives"

    code = await Processes([sys.executable, "-c", SLOW_START, str(told)], 1).run()

    assert (code, lives(told)) == (3, MOST_DEATHS)


async def test_process_that_worked_before_it_died_is_started_again(tmp_path: Path) -> None:
    told = tmp_path / "lives"
    kept = Processes([sys.executable, "-c", WORKS_AND_DIES, str(told)], 1)

    running = asyncio.create_task(kept.run())
    await eventually(lambda: lives(told) > MOST_DEATHS, seconds=60)
    kept.stop()

    await running
