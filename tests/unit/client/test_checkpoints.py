"""Checkpoints and restores, with the real dispatcher and real agents, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coditect import Agent, Context, PlainContext, Workflow
from coditect.errors import InputError, NotFound, VersionConflict
from coditect.operations.workflows import history_of
from coditect.testing import TestFleet
from coditect.workflow.states import WorkflowState


class Site:
    """An agent that builds and publishes, and takes back what it published."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.agent = agent = Agent("site")

        @agent.capability("site.build")
        async def build(what: str, ctx: Context) -> str:
            self.done.append(f"build {what}")
            await ctx.shared.put("built", what)
            await ctx.checkpoint(f"building-{what}")
            await asyncio.sleep(1)
            return f"{what} {self.done.count(f'build {what}')}"

        @agent.capability("site.publish")
        async def publish(built: str, ctx: Context) -> str:
            self.done.append(f"publish {built}, shared {await ctx.shared.get('built')}")
            await ctx.shared.put("built", "published")
            return built

        @agent.capability("site.withdraw")
        async def withdraw(published: dict[str, Any]) -> None:
            self.done.append(f"withdraw {published['result']}")


def flow() -> Workflow:
    workflow = Workflow("site")
    pages = workflow.task("site.build", "pages", name="pages")
    index = workflow.task("site.build", "index", name="index", after=[pages])
    workflow.task("site.publish", index.result, name="publish", compensate="site.withdraw")
    return workflow


async def test_completed_workflow_is_brought_back_and_ends_again() -> None:
    site = Site()
    async with TestFleet(agents=[site.agent]) as fleet:
        run = await fleet.start(flow())
        first = await run.result(str)
        plan = await run.plan_restore("pages")
        await run.restore(plan, by="ada")
        second = await run.result(str)
        names = [row.name for row in await run.checkpoints()]
        attempts = [(row.attempt, row.status) async for row in run.attempts("index")]
        nodes = [row async for row in run.nodes()]
        told = history_of(await run.overview(), nodes, [row async for row in run.attempts()], await run.restores())

    assert (first, second) == ("index 1", "index 2")
    assert plan.lasting == ("index",)
    assert [(row.node, row.compensated) for row in plan.nodes] == [("index", False), ("publish", True)]
    assert site.done == [
        "build pages", "build index", "publish index 1, shared index",
        "withdraw index 1", "build index", "publish index 2, shared index",
    ]  # fmt: skip
    assert names == ["building-pages", "pages", "building-index", "index", "publish"]
    assert attempts == [(1, "completed"), (1, "completed")]
    assert [(one.agent, one.reason) for one in told if one.event == "workflow.restored"] == [("ada", "pages")]


async def test_running_workflow_is_brought_back_to_a_checkpoint_of_its_handler() -> None:
    site = Site()
    async with TestFleet(agents=[site.agent]) as fleet:
        run = await fleet.start(flow())
        while "build index" not in site.done:
            await asyncio.sleep(0.1)
        await run.checkpoint("here")
        plan = await run.plan_restore("building-pages")
        await run.restore(plan, by="ada")
        value = await run.result(str)
        with pytest.raises(NotFound, match="no such checkpoint"):
            await run.restore("here", by="ada")

    assert plan.lasting == ("index", "pages")
    assert value == "index 2"
    assert site.done.count("build pages") == 2


@pytest.mark.parametrize("process", [False, True])
async def test_plain_handler_names_a_checkpoint_and_waits_for_it(process: bool) -> None:
    agent = Agent("plain")
    agent.capability("plain.build", process=process)(build_plainly)
    plain = Workflow("plain")
    plain.task("plain.build", "pages", name="pages")
    async with TestFleet(agents=[agent]) as fleet:
        run = await fleet.start(plain)
        await run.wait()
        direct = await (await fleet.client.submit("plain.build", "pages")).outcome()

        assert [row.name for row in await run.checkpoints()] == ["building-pages", "pages"]
    assert direct.failure is not None
    assert "belongs to no workflow" in direct.failure.message


def build_plainly(what: str, ctx: PlainContext) -> None:
    ctx.checkpoint(f"building-{what}")


async def test_restore_without_a_plan_discards_nothing_that_cannot_be_undone() -> None:
    site = Site()
    async with TestFleet(agents=[site.agent]) as fleet:
        run = await fleet.start(flow())
        await run.wait()
        with pytest.raises(InputError, match="cannot be undone") as refused:
            await run.restore("pages", by="ada")
        await run.restore("index", by="ada")
        state = await run.wait()

    assert refused.value.facts["nodes"] == ("index",)
    assert state is WorkflowState.COMPLETED
    assert site.done[-2:] == ["withdraw index 1", "publish index 1, shared index"]


async def test_plan_is_refused_once_the_workflow_has_gone_on() -> None:
    site = Site()
    async with TestFleet(agents=[site.agent]) as fleet:
        run = await fleet.start(flow())
        await run.ending("pages")
        plan = await run.plan_restore("pages")
        await run.wait()
        with pytest.raises(VersionConflict, match="went on"):
            await run.restore(plan, by="ada")
