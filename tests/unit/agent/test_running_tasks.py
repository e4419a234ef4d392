"""What an agent runs, as it says when it is asked."""

from __future__ import annotations

import asyncio

from coditect import Agent, Options, Priority
from coditect.operations.locate import ask_agents
from coditect.telemetry.metrics import QUEUE_WAIT
from coditect.wire import control_messages
from tests.unit.agent.scene import Scene


async def test_an_agent_names_the_tasks_that_it_runs(scene: Scene) -> None:
    started = asyncio.Event()
    agent = Agent("slow", slots=2)

    @agent.capability("slow.work")
    async def work(_: object) -> None:
        started.set()
        await asyncio.sleep(60)

    busy = await scene.start(agent)
    idle = await scene.start(Agent("other"))
    client = await scene.client()
    handle = await client.submit("slow.work", options=Options(priority=Priority.P0))
    await started.wait()

    ping = control_messages.ping(reply_to="", tasks=True)
    answers = await ask_agents(await scene.broker(), ping, enough=lambda heard: len(heard) == 2)

    told = {answer["agent_id"]: answer["tasks"] for answer in answers}
    (task,) = told[busy.agent_id]
    assert told[idle.agent_id] == []
    assert (task["task_id"], task["capability"], task["priority"]) == (handle.task_id, "slow.work", "p0")
    assert (task["attempt"], task["workflow"]) == (1, None)


async def test_an_agent_that_is_asked_for_nothing_names_no_tasks(scene: Scene) -> None:
    await scene.start(Agent("other"))

    ping = control_messages.ping(reply_to="")
    (answer,) = await ask_agents(await scene.broker(), ping, enough=bool)

    assert "tasks" not in answer
    assert "metrics" not in answer


async def test_an_agent_gives_the_totals_of_the_metrics_that_a_ping_names(scene: Scene) -> None:
    agent = Agent("quick")

    @agent.capability("quick.work")
    async def work(_: object) -> None:
        """Do nothing."""

    client = await scene.serve(agent)
    await client.request("quick.work")

    ping = control_messages.ping(reply_to="", metrics=[QUEUE_WAIT.name, "coditect_unknown"])
    (answer,) = await ask_agents(await scene.broker(), ping, enough=bool)

    assert answer["metrics"].keys() == {QUEUE_WAIT.name}
    assert sum(answer["metrics"][QUEUE_WAIT.name]["counts"]) == 1
