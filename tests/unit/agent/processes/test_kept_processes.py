"""Whether a process that dies again and again is given up is a matter of deaths, not of how long each start takes."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from coditect.agent.process import BEGAN, Processes, RestartPolicy
from tests.support import eventually

SLOW_START = "import sys, time; open(sys.argv[1], 'a').write('x'); time.sleep(0.3); sys.exit(3)"
ENDS_WELL = "import os, sys; open(sys.argv[1], 'a').write('x'); os._exit(0)"
DRAINS = f"from coditect.agent.process import say_drained; say_drained(); {ENDS_WELL}"
WORKS_AND_DIES = f"import os, pathlib; pathlib.Path(os.environ['{BEGAN}']).touch(); {SLOW_START}"


QUICK = RestartPolicy(first_seconds=0.001, healthy_seconds=0.2, start_attempts=4)


def lives(path: Path) -> int:
    return len(path.read_text()) if path.exists() else 0


async def test_process_that_starts_slowly_and_never_works_is_given_up(tmp_path: Path) -> None:
    told = tmp_path / "lives"

    code = await Processes([sys.executable, "-c", SLOW_START, str(told)], 1, policy=QUICK).run()

    assert (code, lives(told)) == (3, QUICK.start_attempts)


async def test_process_that_worked_before_it_died_is_started_again(tmp_path: Path) -> None:
    told = tmp_path / "lives"
    kept = Processes([sys.executable, "-c", WORKS_AND_DIES, str(told)], 1, policy=QUICK)

    running = asyncio.create_task(kept.run())
    await eventually(lambda: lives(told) > QUICK.start_attempts, seconds=100)
    kept.stop()

    await running


@pytest.mark.parametrize(("child", "expected"), [(ENDS_WELL, (1, QUICK.start_attempts)), (DRAINS, (0, 1))])
async def test_process_that_ends_without_an_error_stays_away_only_if_it_was_drained(
    tmp_path: Path, child: str, expected: tuple[int, int]
) -> None:
    told = tmp_path / "lives"

    code = await Processes([sys.executable, "-c", child, str(told)], 1, policy=QUICK).run()

    assert (code, lives(told)) == expected
