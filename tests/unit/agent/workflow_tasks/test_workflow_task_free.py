"""Whether an agent says that it is free, and what comes to its own queue because of that."""

from __future__ import annotations

import asyncio

import pytest

from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus
from coditect.wire import routing
from tests.owner import ScriptedOwner, granting
from tests.support import eventually
from tests.unit.agent.scene import Scene
from tests.unit.agent.workflow_tasks.works import Works


@pytest.mark.parametrize(("slots", "free"), [(4, True), (1, False)])
async def test_agent_is_free_if_it_has_credit_to_spare(
    scene: Scene, owner: ScriptedOwner, slots: int, free: bool
) -> None:
    """With a single slot it never has any: the queue may hold more."""
    await scene.start(Works(slots=slots).agent)

    await owner.publish("work.do", 1)
    await eventually(lambda: owner.results)

    assert [result.free for result in owner.results] == [free]


async def test_agent_that_drains_is_not_free(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    agent = await scene.start(works.agent)
    await owner.publish("work.do", "wait")
    await eventually(lambda: works.runs)

    stopping = asyncio.ensure_future(agent.stop())
    await eventually(lambda: agent.runtime.load().status is AgentStatus.DRAINING)
    works.gate.set()
    await stopping
    await eventually(lambda: owner.results)

    assert [result.free for result in owner.results] == [False]


async def test_what_comes_to_its_own_queue_runs_unasked(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    agent = await scene.start(works.agent)

    await owner.publish("work.do", 1, to=AgentId(agent.agent_id))
    await eventually(lambda: owner.results)

    assert (works.runs, owner.claims) == ([(1, 1, 1)], [])
    assert [result.free for result in owner.results] == [True]


async def test_what_an_agents_own_queue_handed_on_is_claimed_however_fresh(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works()
    owner.decide = granting(fence=8)
    await scene.start(works.agent)
    handed_on = {"x-first-death-queue": routing.next_queue(AgentId("gone-1"))}

    await owner.publish("work.do", 1, headers=handed_on)
    await eventually(lambda: owner.results)

    assert (works.runs, len(owner.claims)) == ([(1, 8, 1)], 1)


async def test_what_has_no_slot_after_all_goes_to_the_others_at_once(scene: Scene, owner: ScriptedOwner) -> None:
    works = Works(slots=1)
    agent, broker = await scene.start(works.agent), await scene.broker()
    await owner.publish("work.do", "wait", node="one")
    await eventually(lambda: works.runs)

    await owner.publish("work.do", 2, node="two", to=AgentId(agent.agent_id))
    await eventually(lambda: scene.ready_tasks("work.do") == 1)

    delivery = await broker.get(routing.task_queue("work.do", Priority.P1))
    assert delivery is not None
    assert delivery.message.headers["x-first-death-reason"] == "rejected", "not by its time in the queue"
    works.gate.set()
