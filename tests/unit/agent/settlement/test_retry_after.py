"""`RetryAfter`: the handler says when its task is tried again; how often is the retry policy's."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from coditect import Agent, Context, Retry, RetryAfter, TaskFailed, Workflow
from coditect.broker.topology import BACK_TTL_MS
from coditect.errors import InputError
from coditect.model.duration import Duration
from coditect.testing import TestFleet
from tests.unit.agent.process_agent import worker
from tests.unit.agent.scene import Scene

HOP_SECONDS = 2 * BACK_TTL_MS / 1000  # out of its retry-delay queue a task goes by the capability's own queue


class Busy:
    """An agent that asks for another attempt after `delay`, until the last one."""

    def __init__(self, delay: Duration, *, until: int = 99) -> None:
        self.moments: list[float] = []
        self.agent = Agent("busy")

        @self.agent.capability("busy.call", retry=Retry(max_attempts=3, first="100ms", cap="100ms", on=(OSError,)))
        async def call(_: None, ctx: Context) -> int:
            self.moments.append(asyncio.get_running_loop().time())
            if ctx.attempt < until:
                raise RetryAfter(delay)
            return ctx.attempt

    @property
    def pauses(self) -> list[float]:
        return [later - earlier for earlier, later in pairwise(self.moments)]


@pytest.mark.parametrize(("asked", "seconds"), [("30s", 30), (45, 60), ("6m", 900), ("1h", 3_600), (0, 0.1)])
async def test_next_attempt_comes_not_before_the_asked_delay_but_in_the_next_of_the_queues(
    asked: Duration, seconds: float
) -> None:
    busy = Busy(asked, until=2)
    async with TestFleet(agents=[busy.agent]) as fleet:
        assert await fleet.request("busy.call", None, int, timeout="1d") == 2

    (pause,) = busy.pauses
    assert seconds <= pause <= seconds + HOP_SECONDS


@pytest.mark.parametrize(("max_attempts", "durable"), [(3, False), (2, True)])
async def test_attempts_are_used_up_as_by_any_failure(max_attempts: int, durable: bool) -> None:
    busy = Busy("30s")
    async with TestFleet(agents=[busy.agent]) as fleet:
        handle = await fleet.submit("busy.call", max_attempts=max_attempts, durable=durable)
        with pytest.raises(TaskFailed, match="asked for another attempt"):
            await handle.result(timeout="1d")

        letters = [(one.reason, one.attempts) for one in await fleet.dead_letters("busy.call")]
    assert len(busy.moments) == max_attempts
    assert letters == ([] if durable else [("retry_after", 3)])


@pytest.mark.parametrize("own", [{}, {"retry": Retry(max_attempts=2, first="100ms", cap="100ms")}])
async def test_node_of_a_workflow_waits_exactly_as_long_whoever_s_policy_counts(own: Any) -> None:
    busy = Busy("45s", until=2)
    flow = Workflow("calling")
    flow.task("busy.call", None, name="call", **own)
    async with TestFleet(agents=[busy.agent]) as fleet:
        run = await fleet.start(flow)
        await run.result(timeout="1d")

    (pause,) = busy.pauses
    assert 45 <= pause < 46


async def test_handler_in_a_process_asks_as_well(scene: Scene) -> None:
    client = await scene.serve(worker)

    began = asyncio.get_running_loop().time()
    assert await client.request("proc.later", "500ms", int, timeout="100s") == 2
    assert asyncio.get_running_loop().time() - began >= 0.5


@pytest.mark.parametrize("delay", ["61m", -1, "soon", None, True])
def test_delay_out_of_its_bounds_is_refused_with_what_to_write(delay: object) -> None:
    with pytest.raises(InputError) as caught:
        RetryAfter(delay)  # type: ignore[arg-type] # on purpose

    assert (caught.value.facts["parameter"], bool(caught.value.facts["fix"])) == ("delay", True)


async def test_refused_delay_ends_the_task_and_names_the_fix() -> None:
    busy = Busy("2h")
    async with TestFleet(agents=[busy.agent]) as fleet:
        with pytest.raises(TaskFailed) as caught:
            await fleet.request("busy.call", None, timeout="1d")

    assert (len(busy.moments), "RetryAfter('1h')" in str(caught.value)) == (1, True)
