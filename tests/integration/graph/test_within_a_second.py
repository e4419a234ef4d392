"""While a run goes on, stock RQ shows what the ledger had a second ago or less."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

import pytest

from coditect.aio.supervisor import Supervisor
from dispatcher.ports import ClaimPaths
from dispatcher.taskgraph.port import JobState
from tests.integration.graph.counted import COUNTED, Rq
from tests.integration.graph.plane import Plane, layered
from tests.support import patient

pytestmark = pytest.mark.servers

NODES = 1_000
LAG_SECONDS = 1.0


class Reached(NamedTuple):
    """How many nodes have come so far. No number falls while a run goes on: a node only goes forward."""

    queued: int
    started: int
    ended: int

    @classmethod
    def by(cls, counts: Mapping[str, int]) -> Reached:
        """By the words of `rq info`."""
        ended = counts["finished"] + counts["failed"]
        started = ended + counts["executing"]
        return cls(started + counts["queued"], started, ended)


class Look(NamedTuple):
    """What was seen at some instant between two."""

    begun: float
    done: float
    reached: Reached


async def keep_looking(count: Callable[[], Awaitable[Mapping[str, int]]], looks: list[Look]) -> None:
    now = asyncio.get_running_loop().time
    while True:
        begun = now()
        counts = await count()
        looks.append(Look(begun, now(), Reached.by(counts)))
        await asyncio.sleep(0.02)


def assert_within(look: Look, ledger: list[Look], lag_seconds: float) -> bool:
    """It is neither behind what the ledger had a second before nor before what it had a second later.

    Returns whether there was anything to compare it with.

    RQ's tools count one place after the other, in the order in which a node goes through them: one that goes on
    meanwhile is counted twice, so of what they have too many only the ended say something.
    """
    before = [one.reached for one in ledger if one.done <= look.begun - lag_seconds][-1:]
    after = [one.reached for one in ledger if one.begun >= look.done + lag_seconds][:1]
    for least in before:
        assert all(has >= had for has, had in zip(look.reached, least, strict=True)), (look, least)
    for most in after:
        assert look.reached.ended <= most.ended, (look, most)
    return bool(before and after)


async def test_rq_is_within_a_second_of_the_ledger_all_through_a_run(hall: Plane, rq: Rq) -> None:
    ledger, classes, info = list[Look](), list[Look](), list[Look]()
    lag_seconds = patient(LAG_SECONDS)

    async def by_ledger() -> Mapping[str, int]:
        states = await hall.ledger(run)
        return {word: states[JobState(state)] for word, state in COUNTED.items()}

    async with hall.dispatcher(ClaimPaths()), Supervisor() as background:
        run = await hall.client.start(layered(10, NODES // 10))
        background.start(keep_looking(by_ledger, ledger), name="ledger")
        background.start(keep_looking(lambda: asyncio.to_thread(rq.counts), classes), name="classes")
        background.start(keep_looking(rq.info, info), name="rq info")
        while len(hall.executed) < NODES:
            # `rq info` is a process: it may take its time
            if len(hall.executed) < NODES // 2 or any(look.reached.ended for look in info):
                hall.permit(12)
            await asyncio.sleep(0.03 * lag_seconds)  # so that it lasts some seconds
        assert await run.wait(timeout="60s") == "completed"

    compared = [assert_within(look, ledger, lag_seconds) for look in classes + info]
    assert any(compared), "it proves nothing"
    for looks, number in ((ledger, 10), (classes, 10), (info, 1)):
        amid = [one for one in looks if 0 < one.reached.ended < NODES]
        assert len(amid) >= number
    assert ledger[-1].begun - ledger[0].begun > 2 * lag_seconds
