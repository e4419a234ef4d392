"""Shared state of a whole fleet: what one handler or client writes, another reads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coditect import Agent, Context, Workflow
from coditect.errors import InputError, NotFound, TooLarge, VersionConflict
from coditect.testing import TestFleet

planner = Agent("planner", slots=8)


@planner.capability("plan")
async def plan(steps: list[str], ctx: Context) -> int:
    return await ctx.shared.put("plan", steps)


@planner.capability("follow")
async def follow(_: None, ctx: Context) -> list[str]:
    found: list[str] = await ctx.shared.get("plan", list[str]) or []
    await ctx.shared.merge("done", dict.fromkeys(found, ctx.agent_id))
    return found


@planner.capability("count")
async def count(times: int, ctx: Context) -> None:
    for _ in range(times):
        await ctx.state("team").update("count", lambda n: (n or 0) + 1)


@planner.capability("alone")
async def alone(_: None, ctx: Context) -> None:
    await ctx.shared.put("x", 1)


async def test_nodes_of_a_workflow_share_its_state_and_a_client_reads_who_wrote_it() -> None:
    flow = Workflow("planned")
    flow.task("follow", after=[flow.task("plan", ["a", "b"], name="plan")], name="follow")
    async with TestFleet(agents=[planner]) as fleet:
        run = await fleet.start(flow)
        await run.wait()
        entry = await run.shared.entry("plan")
        done = await run.shared.get("done")
        keys = [one.key async for one in run.shared.entries()]
        with pytest.raises(InputError, match="ended"):
            await run.shared.put("plan", [])

    assert (entry.version, entry.value, entry.task) == (1, ["a", "b"], f"{run.id}:plan")
    assert entry.writer.startswith("planner")
    assert set(done) == {"a", "b"}
    assert keys == ["done", "plan"]


async def test_writers_at_the_same_time_lose_no_update() -> None:
    async with TestFleet(agents=[planner], replicas=2) as fleet:
        handles = [await fleet.submit("count", 10) for _ in range(4)]
        for handle in handles:
            await handle.result()
        assert await fleet.client.state("team").get("count", int) == 40


async def test_write_with_an_older_version_is_refused_and_changes_nothing() -> None:
    async with TestFleet(agents=[planner]) as fleet:
        space = fleet.client.state("team")
        first = await space.put("k", "a", if_version=0)
        await space.put("k", "b")
        for outdated in (0, first):
            with pytest.raises(VersionConflict) as refused:
                await space.put("k", "c", if_version=outdated)
            assert refused.value.facts["version"] == 2
        await space.delete("k")
        absent = await space.entry("k")
        again = await space.put("k", "d", if_version=0)

    assert (absent.value, absent.deleted) == (None, True)
    assert again == 4, "a version is never used twice, also over a deletion"


async def test_keys_are_listed_by_prefix_in_both_directions() -> None:
    async with TestFleet(agents=[planner]) as fleet:
        space = fleet.client.state("team")
        for key in ("a", "a/1", "a/2", "a/é", "b"):
            await space.put(key, 0)
        await space.delete("a/2")

        async def keys(*args: Any, **kwargs: Any) -> list[str]:
            return [one.key async for one in space.entries(*args, **kwargs)]

        assert await keys() == ["a", "a/1", "a/é", "b"]
        assert await keys("a/") == ["a/1", "a/é"]
        assert await keys("a/", reverse=True) == ["a/é", "a/1"]
        assert await keys("a/", reverse=True, limit=1) == ["a/é"]
        assert await keys(limit=3) == ["a", "a/1", "a/é"]
        assert await keys("c") == []
        with pytest.raises(InputError, match="limit"):
            await keys(limit=0)


async def test_history_names_the_writers_and_keeps_twenty_versions() -> None:
    async with TestFleet(agents=[planner]) as fleet:
        space = fleet.client.state("team")
        for number in range(25):
            await space.put("k", number)
        history = await space.history("k")
        kept = await space.entry("k", version=6)
        with pytest.raises(NotFound, match="version"):
            await space.entry("k", version=5)
        name = fleet.client.name

    assert [one.version for one in history] == list(range(25, 5, -1))
    assert {one.writer for one in history} == {name}
    assert kept.value == 5


async def test_merge_changes_members_and_removes_those_that_are_none() -> None:
    async with TestFleet(agents=[planner]) as fleet:
        space = fleet.client.state("team")
        await space.merge("k", {"a": 1, "b": {"c": 2, "d": 3}})
        await space.merge("k", {"a": None, "b": {"d": None, "e": [None]}})
        assert await space.get("k") == {"b": {"c": 2, "e": [None]}}


async def test_watch_yields_the_present_version_and_each_later_one_within_a_second() -> None:
    async with TestFleet(agents=[planner]) as fleet:
        space = fleet.client.state("team")
        seen: list[Any] = []

        async def watch() -> None:
            async for entry in space.watch("k"):
                seen.append((entry.version, entry.value))

        watching = asyncio.create_task(watch())
        await fleet.advance("5s")
        await space.put("k", "a")
        await fleet.advance("2s")
        await space.put("k", "b")
        await fleet.advance("2s")
        watching.cancel()

    assert seen == [(0, None), (1, "a"), (2, "b")]


async def test_value_of_several_hundred_kilobytes_is_kept_whole_and_a_larger_one_needs_a_blob_store() -> None:
    async with TestFleet(agents=[planner]) as fleet:
        space = fleet.client.state("team")
        await space.put("k", "x" * 900_000)
        assert len(await space.get("k", str) or "") == 900_000
        with pytest.raises(TooLarge):
            await space.put("k", "x" * 1_100_000)


async def test_task_without_a_workflow_has_no_state_of_its_own() -> None:
    async with TestFleet(agents=[planner]) as fleet:
        outcome = await (await fleet.submit("alone")).outcome()

    assert outcome.failure is not None
    assert "belongs to no workflow" in outcome.failure.message
    assert "ctx.state" in outcome.failure.fix
