"""The event loop of an agent outlives what handlers do to it."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from coditect.aio import loop
from coditect.aio.loop import run_unstoppable_loop


@pytest.fixture(params=["uvloop", "asyncio"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "asyncio":
        monkeypatch.setattr(loop, "uvloop", None)
    elif loop.uvloop is None:
        pytest.skip("uvloop is not installed")


async def leave() -> None:
    sys.exit(3)


def test_loop_that_a_task_stops_runs_again() -> None:
    async def main() -> str:
        ticking = asyncio.ensure_future(asyncio.sleep(0.05, "ticked"))
        for _ in range(3):
            asyncio.get_running_loop().stop()
            await asyncio.sleep(0)
        return await ticking

    assert run_unstoppable_loop(main()) == "ticked"


def test_exit_in_another_asyncio_task_is_the_error_of_that_task() -> None:
    async def main() -> Any:
        return await asyncio.gather(leave(), asyncio.sleep(0.01, "beside"), return_exceptions=True)

    error, beside = run_unstoppable_loop(main())
    assert isinstance(error, SystemExit)
    assert beside == "beside"


def test_exit_of_the_program_itself_ends_it() -> None:
    with pytest.raises(SystemExit):
        run_unstoppable_loop(leave())
