"""The same seed, the same run; another seed, another order of what is not ordered."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Retry
from coditect.testing import TestFleet
from tests.servers import ROOT
from tests.unit.testing.workers import Sleepers

History = list[tuple[str, str, str, str, int]]


async def history(seed: int) -> History:
    """Everything that a fleet told, in a run with work, failures, and a kill."""
    sleepers = Sleepers(slots=2, retry=Retry(max_attempts=4, first="1m", cap="10m"))
    async with TestFleet(agents=[sleepers.agent], replicas=3, seed=seed) as fleet:
        handles = [await fleet.submit("sleep.well", number % 5 - 1) for number in range(30)]
        await fleet.advance("3s")
        fleet.kill(fleet.agents[0].id)
        for handle in handles:
            await handle.outcome(timeout="2h")
        await fleet.settled()
        return [(one.type, one.source, one.subject, one.id, one.time_ms) for one in fleet.events]


def run(seed: int) -> History:
    return asyncio.run(history(seed))


@pytest.mark.proof
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_same_seed_gives_the_same_history(seed: int) -> None:
    assert run(seed) == run(seed)


@pytest.mark.proof
@pytest.mark.once  # as the other interpreter does
def test_same_seed_gives_the_same_history_in_another_interpreter() -> None:
    program = "from tests.unit.testing.test_seed import run; print(run(5))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=environment | {"PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }

    assert printed == {f"{run(5)}\n"}


@pytest.mark.proof
def test_other_seeds_give_other_interleavings() -> None:
    def who_did_what(seed: int) -> list[tuple[str, str]]:
        return [(kind, source) for kind, source, _, _, _ in run(seed)]

    assert len({str(who_did_what(seed)) for seed in range(4)}) > 2


def test_work_is_shared_whatever_the_seed() -> None:
    async def shares() -> set[str]:
        sleepers = Sleepers()
        async with TestFleet(agents=[sleepers.agent], replicas=3) as fleet:
            async for handle in fleet.client.submit_many("sleep.well", [1] * 40):
                await handle.result(str)
        return set(sleepers.started)

    assert asyncio.run(shares()) == {"sleeper-1", "sleeper-2", "sleeper-3"}
