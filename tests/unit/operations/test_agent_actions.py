"""Asking one agent by its name for an action, or all that offer it."""

from __future__ import annotations

import pytest

import coditect
from coditect import Client, Context, Priority, TaskFailed
from coditect.agent.declaration import Agent
from coditect.errors import InputError, NotFound, SetupError, UnknownCapability
from tests.unit.agent.scene import Scene, open_scene


def named(name: str) -> Agent:
    agent = Agent(name)

    @agent.capability("page.read")
    async def read(page: int, ctx: Context) -> str:
        if page < 0:
            raise ValueError("no such page")
        return f"{page} by {name} at {ctx.priority.value}"

    return agent


def other() -> Agent:
    agent = Agent("other")

    @agent.capability("page.write")
    async def write(page: int) -> None: ...

    return agent


async def staffed(scene: Scene) -> dict[str, str]:
    running = [await scene.start(named("anna")), await scene.start(named("bert")), await scene.start(other())]
    return {agent.agent_id: agent.agent_id.partition("-")[0] for agent in running}


async def test_an_agent_is_asked_by_name_or_id_and_any_by_a_star() -> None:
    async with open_scene() as scene:
        names = await staffed(scene)
        client = await scene.client()

        for target in [*names][:2]:
            said = await coditect.request_agent_action(target, "page.read", 1, "10s", "critical", client=client)
            assert said == f"1 by {names[target]} at p0"
        assert await coditect.request_agent_action("bert", "page.read", 2, client=client) == "2 by bert at p1"
        anyone = await coditect.request_agent_action("*", "page.read", 3, priority=Priority.P2, client=client)
        assert anyone in ("3 by anna at p2", "3 by bert at p2")


async def test_who_is_not_there_or_does_not_offer_the_action_is_named() -> None:
    async with open_scene() as scene:
        await staffed(scene)
        client = await scene.client()

        with pytest.raises(NotFound) as unknown:
            await coditect.request_agent_action("ana", "page.read", client=client)
        with pytest.raises(NotFound) as unable:
            await coditect.request_agent_action("other", "page.read", client=client)
        with pytest.raises(InputError):
            await coditect.request_agent_action("anna", "page.read", priority="urgent", client=client)

    assert "anna" in unknown.value.facts["nearest"]  # type: ignore[operator]
    assert unable.value.facts["offers"] == ["page.write"]


async def test_a_broadcast_asks_each_that_offers_the_action_but_the_excluded() -> None:
    async with open_scene() as scene:
        names = await staffed(scene)
        client = await scene.client()
        anna, bert, _ = names

        everyone = await coditect.broadcast("page.read", 1, client=client, timeout="10s")
        without = await coditect.broadcast("page.read", 1, client=client, exclude=["anna"])
        failed = await coditect.broadcast("page.read", -1, client=client, exclude=[bert], timeout="30s")
        with pytest.raises(UnknownCapability):
            await coditect.broadcast("page.read", 1, client=client, exclude=["anna", "bert"])

    assert everyone == {anna: "1 by anna at p1", bert: "1 by bert at p1"}
    assert without == {bert: "1 by bert at p1"}
    assert isinstance(failed[anna], TaskFailed)


async def test_a_client_without_a_registry_knows_no_agents() -> None:
    async with open_scene() as scene:
        client = Client(await scene.broker())

        with pytest.raises(SetupError, match="registry"):
            await client.agents.list()
