"""Handlers of every kind in a fleet under test."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from coditect import Agent, Context, From, Strategy, Workflow
from coditect.client.options import Options
from coditect.errors import InputError
from coditect.settings.settings import Settings
from coditect.testing import TestFleet
from tests.unit.testing.workers import Sleepers


def with_processes() -> Agent:
    agent = Agent("heavy")

    @agent.capability("heavy.plain", process=True)
    def plain(number: int, ctx: Context) -> tuple[int, str]:
        ctx.report(0.5, "half")
        return 2 * number, threading.current_thread().name

    @agent.capability("heavy.async", process=True)
    async def on_loop(_: None) -> int:
        await asyncio.sleep(60)
        return os.getpid()

    return agent


async def test_process_handlers_run_in_the_test_s_own_process_and_report_their_progress() -> None:
    async with TestFleet(agents=[with_processes()]) as fleet:
        doubled, thread = await fleet.request("heavy.plain", 21)
        assert doubled == 42
        assert thread.startswith("heavy")
        assert await fleet.request("heavy.async") == os.getpid()
        assert fleet.elapsed_seconds == 60
        [progress] = [event for event in fleet.events if event.type == "task.progress"]
        assert progress.data == {"share": 0.5, "note": "half"}


async def test_no_thread_is_started_without_a_plain_handler() -> None:
    before = threading.active_count()
    async with TestFleet(agents=[Sleepers().agent], replicas=4) as fleet:
        await fleet.request("sleep.well", 3)

        assert threading.active_count() <= before  # one that an earlier test left may end meanwhile


async def test_thread_of_a_paused_process_does_not_hold_time_up() -> None:
    release = threading.Event()
    plain = Agent("plain")

    @plain.capability("plain.wait")
    def wait(_: None) -> str:
        release.wait()
        return "done"

    began = time.monotonic()
    async with TestFleet(agents=[plain], stuck_after="10m") as fleet:
        handle = await fleet.submit("plain.wait")
        while not any(event.type == "task.started" for event in fleet.events):
            await asyncio.sleep(0)
        fleet.pause("plain")
        await fleet.advance("5s")
        release.set()
        fleet.resume("plain")

        assert await handle.result(str) == "done"
    assert time.monotonic() - began < 60


async def test_asked_agent_that_is_killed_is_asked_again_by_nobody_and_answers_all_the_same() -> None:
    sleepers, asks = Sleepers(), list[int]()
    asking = Agent("asking", slots=1)

    @asking.capability("ask.on")
    async def ask(number: int, ctx: Context) -> str:
        asks.append(number)
        return str(await ctx.request("sleep.well", 60, timeout="10m"))

    async with TestFleet(agents=[asking, sleepers.agent], replicas={"sleeper": 2}) as fleet:
        handles = [await fleet.submit("ask.on", number) for number in range(3)]
        await fleet.advance("30s")
        fleet.kill("sleeper-1")

        assert [await handle.result(str) for handle in handles] == ["sleeper-2"] * 3
        assert sorted(asks) == [0, 1, 2]


async def test_strategy_sees_the_load_of_the_last_heartbeat() -> None:
    sleepers = Sleepers(slots=4)
    async with TestFleet(agents=[sleepers.agent], replicas=2) as fleet:
        await fleet.submit("sleep.well", 600)
        await fleet.advance("2s")
        [busy] = sleepers.started

        picked = [
            await (await fleet.submit("sleep.well", 0, options=Options(strategy=Strategy.LEAST_BUSY))).result(str)
            for _ in range(5)
        ]

        assert busy not in picked


async def test_it_works_in_debug_mode() -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        async with TestFleet(agents=[Sleepers().agent]) as fleet:
            assert await fleet.request("sleep.well", 5) == "sleeper-1"
    finally:
        loop.set_debug(False)


async def test_large_values_have_a_place_when_the_settings_name_one() -> None:
    agent = Agent("doubler")

    @agent.capability("text.double")
    async def double(text: str) -> str:
        return text + text

    async with TestFleet([agent], settings=Settings(blob_url="memory://fleet")) as fleet:
        handle = await fleet.submit("text.double", "x" * 2_000_000)

        assert await handle.result(str) == "x" * 4_000_000


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


LARGE = 2_000_000


def _writer() -> Agent:
    agent = Agent("writer")

    @agent.capability("text.make")
    async def make(size: int) -> str:
        return "x" * size

    @agent.capability("text.count")
    async def count(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    return agent


async def test_large_results_go_from_node_to_node_and_to_whoever_asks() -> None:
    flow = Workflow("large")
    one = flow.task("text.make", LARGE, name="one")
    many = flow.map("text.make", From("input"), From("item"), limit=3, name="many")
    flow.task("text.count", [From("results.one"), From("results.many[1]")], name="counted", after=[one, many])

    async with TestFleet([_writer()], settings=Settings(blob_url="memory://results")) as fleet:
        run = await fleet.client.start(flow, [5, LARGE + 1, 7])

        assert await run.result() == [LARGE, LARGE + 1]
        assert await run.result(str, node="one") == "x" * LARGE
        assert [len(text) for text in await run.result(list[str], node="many")] == [5, LARGE + 1, 7]
