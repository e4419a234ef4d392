"""Fire and forget: tasks whose result nobody wants."""

from __future__ import annotations

import pytest

from coditect import Agent
from coditect.client.options import Options
from coditect.errors import InputError
from coditect.testing import TestFleet


def counting(done: list[int]) -> Agent:
    agent = Agent("counter", slots=4)

    @agent.capability("count.up")
    async def up(number: int) -> int:
        done.append(number)
        return number

    return agent


async def test_tasks_without_results_are_done_and_answer_nobody() -> None:
    done: list[int] = []
    async with TestFleet(agents=[counting(done)], seed=1) as fleet:
        handles = [handle async for handle in fleet.client.submit_many("count.up", range(20), results=False)]
        await fleet.settled()

    assert sorted(done) == list(range(20))
    assert not any(handle.done for handle in handles)


async def test_a_task_without_a_result_has_events_and_waiting_for_it_names_the_fix() -> None:
    async with TestFleet(agents=[counting([])], seed=1) as fleet:
        handle = await fleet.client.submit("count.up", 1, options=Options(results=False))
        types = [event.type async for event in handle.events()]

        assert types[-1] == "task.completed"

        handle = await fleet.client.submit("count.up", 1, options=Options(results=False))
        with pytest.raises(InputError, match="results=True"):
            await handle.result(timeout="1s")
