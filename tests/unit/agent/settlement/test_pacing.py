"""An agent that fails tasks for reasons of its own takes few; a retry goes to another agent where there is one."""

from __future__ import annotations

import asyncio
import errno
import logging
from types import SimpleNamespace
from typing import cast

import pytest

from coditect import Agent, Context, Retry
from coditect.agent.handler import AttemptOutcome
from coditect.agent.settlement import OWN_TROUBLE_PAUSES, Pacing, own_reason
from coditect.broker.port import Delivery
from coditect.errors import TaskFailed
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus
from coditect.model.result import Status
from coditect.model.task import Task
from coditect.registry.port import Search
from coditect.testing import TestFleet
from coditect.wire import routing

PERSISTENT = Retry(max_attempts=5, first="100ms", cap="500ms")


class Sick:
    """An agent of which some processes fail everything, for a reason that is set."""

    def __init__(self, error: Exception, *sick: str) -> None:
        self.error = error
        self.sick = set(sick)
        self.runs: list[str] = []
        self.tried: list[tuple[str, int]] = []
        self.agent = Agent("worker", slots=4)

        @self.agent.capability("work.do", retry=PERSISTENT)
        async def work(_: int, ctx: Context) -> str:
            self.runs.append(str(ctx.agent_id))
            self.tried.append((str(ctx.agent_id), ctx.attempt))
            if str(ctx.agent_id) in self.sick:
                raise self.error
            await asyncio.sleep(0.2)
            return str(ctx.agent_id)


def no_files() -> OSError:
    return OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize("seed", range(2))
async def test_agent_out_of_files_beside_a_healthy_one_costs_no_task(seed: int) -> None:
    sick = Sick(no_files(), "worker-1")
    async with TestFleet(agents=[sick.agent], replicas=2, seed=seed) as fleet:
        handles = [await fleet.submit("work.do", number) for number in range(60)]

        assert {await handle.result(str, timeout="5m") for handle in handles} == {"worker-2"}
        assert await fleet.dead_letters("work.do") == ()
        assert fleet.elapsed_seconds < 30
    assert sick.runs.count("worker-1") <= 20


async def test_agent_says_what_it_lacks_and_recovers_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    sick = Sick(no_files(), "worker-1")
    async with TestFleet(agents=[sick.agent]) as fleet:
        with caplog.at_level(logging.WARNING), pytest.raises(TaskFailed):
            await (await fleet.submit("work.do", 1)).result(timeout="10m")
        await fleet.advance("2s")
        (record,) = await fleet.registry.find(Search())
        assert "EMFILE" in record.load.trouble
        assert record.load.status in (AgentStatus.BUSY, AgentStatus.IDLE)

        sick.sick.clear()
        await fleet.advance("1m")
        assert await fleet.request("work.do", 2, str, timeout="1m") == "worker-1"
        await fleet.advance("2s")
        (record,) = await fleet.registry.find(Search())
        assert record.load.trouble == ""
    told = [one.getMessage() for one in caplog.records]
    assert told.count("Tasks fail here for a reason of this agent's own") == 1


async def test_sick_agent_alone_takes_no_more_than_a_task_in_a_while() -> None:
    sick = Sick(no_files(), "worker-1")
    async with TestFleet(agents=[sick.agent]) as fleet:
        for number in range(200):
            await fleet.submit("work.do", number)
        await fleet.advance("20s")
        before = len(sick.runs)
        await fleet.advance("60s")

        assert len(sick.runs) - before <= 2 + 60 / OWN_TROUBLE_PAUSES.longest


async def test_mistakes_of_tasks_slow_nobody() -> None:
    sick = Sick(ValueError("bad input"), "worker-1")
    async with TestFleet(agents=[sick.agent]) as fleet:
        handles = [await fleet.submit("work.do", number) for number in range(40)]
        for handle in handles:
            with pytest.raises(TaskFailed):
                await handle.result(timeout="1m")

        assert fleet.elapsed_seconds < 20


@pytest.mark.parametrize("durable", [False, True])
async def test_retry_prefers_another_agent_than_the_one_that_failed(durable: bool) -> None:
    sick = Sick(ValueError("only here"), "worker-1")
    async with TestFleet(agents=[sick.agent], replicas=2, seed=1) as fleet:  # by others, one of 100 may fail five times
        for number in range(100):
            handle = await fleet.submit("work.do", number, durable=durable)
            assert await handle.result(str, timeout="1m") == "worker-2"

    retried = sum(attempt == 2 for _, attempt in sick.tried)
    again = sum((agent, attempt) == ("worker-1", 2) for agent, attempt in sick.tried)
    assert retried > 30
    assert again < retried / 4, "without a preference it is every second one"


def test_retry_in_the_agent_s_own_queue_is_not_returned() -> None:
    pacing, task = Pacing(), cast(Task, SimpleNamespace(id="task"))
    pacing.pause_seconds(task, AttemptOutcome(Status.FAILED))

    def returned(queue: str) -> bool:
        return pacing.for_another(task, cast(Delivery, SimpleNamespace(queue=queue, delivery_count=0)))

    assert returned("tasks.work.do.p1")
    assert not returned(routing.next_queue(AgentId("worker-1"))), "it would come back for ever"


async def test_retry_comes_back_to_the_only_agent_there_is() -> None:
    sick = Sick(ValueError("every time"), "worker-1")
    async with TestFleet(agents=[sick.agent]) as fleet:
        with pytest.raises(TaskFailed) as failed:
            await (await fleet.submit("work.do", 1)).result(timeout="1m")

    assert (failed.value.facts["attempt"], sick.runs) == (5, ["worker-1"] * 5)


def test_reason_is_found_behind_what_a_library_made_of_it() -> None:
    try:
        try:
            raise no_files()
        except OSError as error:
            raise ConnectionError("cannot connect") from error
    except ConnectionError as error:
        assert own_reason(error) == "EMFILE: Too many open files"
    assert own_reason(MemoryError()) == "out of memory"
    assert own_reason(ValueError()) == own_reason(FileNotFoundError(errno.ENOENT, "none")) == ""
