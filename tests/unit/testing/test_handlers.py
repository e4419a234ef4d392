"""Handlers of every kind in a fleet under test."""

from __future__ import annotations

import asyncio
import os
import threading
import time

from coditect import Agent, Context, Strategy
from coditect.client.options import Options
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
