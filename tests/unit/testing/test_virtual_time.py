"""The fleet's time: it stands still while there is work, jumps while there is none, and skips heartbeats."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Agent, Context
from coditect.agent.runtime import HandlerStuck
from coditect.errors import ResultTimeout, SetupError
from coditect.registry.port import Search
from coditect.testing import FleetCrashed, FleetStuck, TestFleet
from coditect.testing.virtual_time import VirtualClock
from tests.unit.testing.workers import Sleepers


@pytest.fixture
async def fleet() -> AsyncIterator[TestFleet]:
    """One that a fixture opens: another task than the test's."""
    async with TestFleet(agents=[Sleepers().agent]) as opened:
        yield opened


async def test_waiting_takes_the_time_it_would_take_and_none_of_ours(fleet: TestFleet) -> None:
    began = time.monotonic()

    await fleet.request("sleep.well", 500, timeout="20m")

    assert fleet.elapsed_seconds == pytest.approx(500, abs=1)
    assert time.monotonic() - began < 60


async def test_time_stands_still_while_there_is_work(fleet: TestFleet) -> None:
    for _ in range(50):
        await fleet.submit("sleep.well", 0)
    await fleet.settled()

    assert fleet.elapsed_seconds == 0


async def test_advance_goes_exactly_so_far_with_what_happens_at_its_end(fleet: TestFleet) -> None:
    handle = await fleet.submit("sleep.well", 10)

    done: list[bool] = []
    for span in ("9s", "1s"):
        await fleet.advance(span)
        done.append(handle.done)

    assert done == [False, True]
    assert fleet.elapsed_seconds == 10


@settings(max_examples=10, deadline=None)
@given(delays=st.lists(st.floats(0, 1e7), min_size=1, max_size=20))
def test_everybody_wakes_at_their_time_and_in_order(delays: list[float]) -> None:
    woken: list[tuple[float, float]] = []

    async def sleep(delay: float) -> None:
        await asyncio.sleep(delay)
        woken.append((delay, asyncio.get_running_loop().time()))

    async def main() -> None:
        async with TestFleet(agents=[Sleepers().agent], patience="365d"), asyncio.TaskGroup() as group:
            for delay in delays:
                group.create_task(sleep(delay))

    asyncio.run(main())

    assert [delay for delay, _ in woken] == pytest.approx(sorted(delays), abs=1e-6)
    assert all(at == pytest.approx(delay, abs=1e-6) for delay, at in woken)


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Every timer that is set, whether it is an idle one."""
    counted: list[bool] = []
    really_set = VirtualClock.set

    def count(self: VirtualClock, timer: asyncio.TimerHandle, *, idle: bool) -> None:
        counted.append(idle)
        really_set(self, timer, idle=idle)

    monkeypatch.setattr(VirtualClock, "set", count)
    return counted


async def test_months_pass_at_once_with_a_task_at_work_and_the_leases_kept(timers: list[bool]) -> None:
    sleepers = Sleepers()
    async with TestFleet(agents=[sleepers.agent], replicas=3) as fleet:
        before = await fleet.registry.find(Search())

        for _ in range(3):
            await fleet.submit("sleep.well", 500)
            await fleet.advance("30d")

        assert len(sleepers.left) == 3
        assert [one.agent_id for one in await fleet.registry.find(Search())] == [one.agent_id for one in before]
        assert timers.count(True) < 3_000, "a quarter of a million heartbeats and looks"


async def test_heartbeats_are_not_lost_by_a_skip(fleet: TestFleet) -> None:
    for _ in range(5):
        await fleet.advance("1h")
        [record] = await fleet.registry.find(Search())
        assert 1_000 < record.lease_ms <= 3_000


@pytest.mark.proof
async def test_timer_of_a_handler_is_never_skipped() -> None:
    ticks: list[float] = []
    clockwork = Agent("clockwork")

    @clockwork.capability("clock.tick", timeout="25m")
    async def tick(times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(7)
            ticks.append(asyncio.get_running_loop().time())

    async with TestFleet(agents=[clockwork]) as fleet:
        await fleet.request("clock.tick", 100, timeout="25m")

    assert ticks == [pytest.approx(7 * (number + 1), abs=0.001) for number in range(100)]


async def test_time_of_day_is_the_virtual_one() -> None:
    noon = datetime(2031, 5, 17, 12, tzinfo=UTC)
    async with TestFleet(agents=[Sleepers().agent], start=noon) as fleet:
        await fleet.advance("2d")
        await fleet.request("sleep.well", 0)

        completed = next(event for event in fleet.events if event.type == "task.completed")
        assert datetime.fromtimestamp(completed.time_ms / 1000, UTC) == datetime(2031, 5, 19, 12, tzinfo=UTC)


async def test_what_waited_on_the_loop_before_waits_as_long_as_it_would_have() -> None:
    loop = asyncio.get_running_loop()
    rang: list[str] = []
    soon = loop.call_later(30, rang.append, "soon")
    later = loop.call_later(90, rang.append, "later")
    real = loop.time()

    async with TestFleet() as fleet:
        assert loop.time() < 1
        await fleet.advance("1m")
        assert rang == ["soon"]

    assert abs(loop.time() - real) < 20, "real again"
    assert later.when() - loop.time() == pytest.approx(30, abs=1)
    soon.cancel()
    later.cancel()


async def test_thread_of_a_plain_handler_holds_time_up() -> None:
    plain = Agent("plain")

    @plain.capability("plain.work", timeout="10ms")
    def work(_: None) -> str:
        time.sleep(0.1)
        return "done"

    async with TestFleet(agents=[plain]) as fleet:
        assert await fleet.request("plain.work") == "done"
        assert fleet.elapsed_seconds < 0.01


async def test_thread_that_never_ends_is_given_up_and_times_out_and_ends_its_agent() -> None:
    release = threading.Event()
    plain = Agent("plain")

    @plain.capability("plain.hang", timeout="5m")
    def hang(_: None) -> None:
        release.wait()

    with pytest.raises(FleetCrashed) as crashed:
        async with TestFleet(agents=[plain], stuck_after="50ms") as fleet:
            handle = await fleet.submit("plain.hang")
            await fleet.advance("6m")
            release.set()

            assert not handle.done
            assert [event.type for event in fleet.events].count("task.started") == 2, "the second attempt"

    assert [type(crash) for crash in crashed.value.exceptions] == [HandlerStuck]


async def test_socket_that_answers_in_real_time_is_waited_for() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"pong\n")
        writer.close()

    async with TestFleet():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"ping\n")
            async with asyncio.timeout(10):
                assert await reader.readline() == b"pong\n"
            writer.close()


async def test_waiting_for_what_cannot_come_or_beyond_the_patience_is_an_error_that_names_the_fix() -> None:
    with pytest.raises(FleetStuck, match="await something that the fleet brings about") as stuck:
        async with TestFleet(agents=[Sleepers().agent]) as fleet:
            fleet.pause("sleeper")
            await asyncio.Event().wait()

    assert stuck.value.facts["paused"] == ["sleeper-1"]
    await asyncio.sleep(0)  # the cancellation was only a messenger

    with pytest.raises(FleetStuck, match="patience"):
        async with TestFleet(agents=[Sleepers().agent], patience="1h"):
            asyncio.get_running_loop().call_later(7_200, print)
            await asyncio.Event().wait()


def test_stuck_test_in_a_fleet_that_another_task_opened_ends_all_the_same() -> None:
    async def wait_in_vain() -> None:
        await asyncio.Event().wait()

    fleet = TestFleet(agents=[Sleepers().agent])
    with asyncio.Runner() as runner:
        runner.run(fleet.__aenter__())  # as a fixture does
        with pytest.raises(FleetStuck, match="only heartbeats"):
            runner.run(wait_in_vain())
        runner.run(fleet.__aexit__(None, None, None))


async def test_await_with_a_timeout_is_not_stuck(fleet: TestFleet) -> None:
    handle = await fleet.submit("sleep.well", 1_000)

    with pytest.raises(ResultTimeout):
        await handle.result(timeout="5m")

    assert fleet.elapsed_seconds == 300


async def test_second_fleet_on_the_loop_is_refused(fleet: TestFleet) -> None:
    with pytest.raises(SetupError, match="one TestFleet at a time"):
        async with TestFleet():
            pass

    assert await fleet.request("sleep.well", 0) == "sleeper-1"


async def test_loop_that_is_not_asyncio_s_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        """As uvloop's: no selector to be found."""

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "get_running_loop", Loop)
        with pytest.raises(SetupError, match="without uvloop's event loop policy"):
            async with TestFleet():
                pass


async def test_a_handler_sees_the_same_time(fleet: TestFleet) -> None:
    seen: list[tuple[float, int | None]] = []
    watch = Agent("watch")

    @watch.capability("watch.look")
    async def look(_: None, ctx: Context) -> None:
        seen.append((asyncio.get_running_loop().time(), ctx.deadline_ms))

    await fleet.add(watch)
    await fleet.advance("1h")
    await fleet.request("watch.look", timeout="1m")

    start_ms = datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1000
    assert seen == [(3600, start_ms + 3_660_000)]


async def test_who_waits_in_a_loop_for_the_end_of_a_span_gets_there_however_little_is_left() -> None:
    async with TestFleet():
        clock = asyncio.get_running_loop().time
        until, waits = clock() + 1.0 + 4e-10, 0
        while (left := until - clock()) > 0 and waits < 100:
            await asyncio.sleep(min(1.0, left))
            waits += 1

    assert waits <= 2
