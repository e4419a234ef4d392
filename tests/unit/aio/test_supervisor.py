"""A loop that has no end is kept alive, however it dies; its process is not ready meanwhile, and ends after a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.aio.supervisor import LoopDied, RestartLimits, Supervisor, heeded, run_until
from coditect.errors import RegistryUnavailable
from coditect.registry.redis import RedisConnection
from coditect.testing import TestFleet

DIED = "A loop died; it is started again"
PERIOD_SECONDS = 0.5
Die = Callable[[], None]


def canceled() -> None:
    raise asyncio.CancelledError  # as aiormq raises it into whoever waits for a stuck connection


def failed() -> None:
    raise RuntimeError("the fault that was asked for")


def returned() -> None:
    """Nothing is raised: the loop returns."""


@dataclass
class Beats:
    """A loop that notes when it turns, and dies as often as it is told."""

    die: Die = failed
    deaths: int = 0
    at: list[float] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            self.at.append(asyncio.get_running_loop().time())
            if self.deaths:
                self.deaths -= 1
                return self.die()
            await asyncio.sleep(PERIOD_SECONDS)


@asynccontextmanager
async def supervised(limits: RestartLimits | None = None) -> AsyncIterator[Supervisor]:
    """A supervisor in virtual time, where a loop may crash."""
    async with TestFleet() as fleet:
        async with Supervisor(limits=limits) as supervisor:
            yield supervisor
        fleet.forgive_crashes()


@pytest.mark.parametrize("die", [failed, canceled, returned])
@pytest.mark.parametrize("critical", [True, False])
async def test_loop_that_dies_is_started_again_counted_and_named_in_the_log(
    die: Die, critical: bool, caplog: pytest.LogCaptureFixture
) -> None:
    beats = Beats(die)
    async with supervised() as supervisor:
        supervisor.keep(beats.run, name="beats", critical=critical)
        await asyncio.sleep(2)
        assert supervisor.health.why_not() == ""
        beats.deaths, before = 1, len(beats.at)

        await asyncio.sleep(PERIOD_SECONDS + 0.01)
        down = supervisor.health.why_not()
        await asyncio.sleep(3)

        assert ("'beats'" in down) is critical
        assert supervisor.health.why_not() == ""
        assert supervisor.health.deaths == {"beats": 1}
        assert len(beats.at) > before + 1
    (said,) = [record for record in caplog.records if record.message == DIED]
    assert (said.levelname, vars(said)["loop"]) == ("ERROR", "beats")
    assert said.exc_info is not None
    assert die is not failed or "the fault that was asked for" in vars(said)["error"]


async def test_pauses_grow_until_a_life_was_healthy() -> None:
    limits = RestartLimits(first_pause_seconds=1, longest_pause_seconds=4, healthy_seconds=10)
    beats = Beats(deaths=5)
    async with supervised(limits) as supervisor:
        supervisor.keep(beats.run, name="beats", critical=False)
        await asyncio.sleep(30)
        beats.deaths, died = 1, len(beats.at)
        await asyncio.sleep(5)

    pauses = [round(after - before, 1) for before, after in zip(beats.at, beats.at[1:], strict=False)]
    assert pauses[:5] == [1, 2, 4, 4, 4]
    assert pauses[died] == 1, "it had lived for ten seconds"


@pytest.mark.parametrize("die", [failed, canceled, returned])
async def test_critical_loop_that_dies_for_ever_ends_the_process_and_says_which_and_why(die: Die) -> None:
    beats = Beats(die, deaths=1_000_000)
    async with supervised() as supervisor:
        supervisor.keep(beats.run, name="beats", critical=True)
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0)

        with pytest.raises(LoopDied) as ended:
            await run_until(asyncio.Event(), supervisor.health.failure())

        assert asyncio.get_running_loop().time() - began < 15
        assert supervisor.health.why_not() != ""
    assert ended.value.facts["loop"] == "beats"
    assert ended.value.facts["deaths"] == RestartLimits().most_deaths
    assert die is not failed or "the fault that was asked for" in str(ended.value.facts["reason"])


async def test_optional_loop_that_dies_for_ever_is_started_for_ever() -> None:
    beats, stop = Beats(deaths=1_000_000), asyncio.Event()
    async with supervised() as supervisor:
        supervisor.keep(beats.run, name="beats", critical=False)
        asyncio.get_running_loop().call_later(100, stop.set)

        await run_until(stop, supervisor.health.failure())

        assert supervisor.health.why_not() == ""
        assert supervisor.health.deaths["beats"] > 100 / RestartLimits().longest_pause_seconds


@pytest.mark.parametrize("when", ["running", "paused"])
async def test_cancellation_ends_a_loop_for_good(when: str) -> None:
    beats = Beats(deaths=4 if when == "paused" else 0)
    async with supervised() as supervisor:
        task = supervisor.keep(beats.run, name="beats", critical=True)
        await asyncio.sleep(1)
        turns = len(beats.at)

        task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(5)

        assert len(beats.at) == turns
        assert supervisor.health.why_not() == ""


async def test_loop_that_swallows_its_cancellation_is_not_started_again() -> None:
    lives = 0

    async def deaf() -> None:
        nonlocal lives
        lives += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:  # as Python 3.11's `wait_for` may do
            return

    async with supervised() as supervisor:
        supervisor.keep(deaf, name="deaf", critical=True)
        await asyncio.sleep(1)

    assert lives == 1
    assert not supervisor.health.deaths


@pytest.mark.parametrize("deaths", [0, 6])
async def test_loop_that_is_over_ends_without_a_death_or_another_life(deaths: int) -> None:
    over, beats = asyncio.Event(), Beats(returned, deaths=deaths)
    async with supervised() as supervisor:
        task = supervisor.keep(beats.run, name="beats", critical=True, until=over.is_set)
        await asyncio.sleep(3.5)  # with deaths, it is in its longest pause
        turns, counted = len(beats.at), supervisor.health.deaths.total()
        over.set()
        beats.deaths = 1

        await asyncio.wait({task}, timeout=PERIOD_SECONDS + 0.1)

        assert task.done()
        assert len(beats.at) <= turns + (not deaths)
        assert supervisor.health.deaths.total() == counted


async def test_crash_of_what_runs_once_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async def crash() -> None:
        failed()

    async with supervised() as supervisor:
        supervisor.start(crash(), name="once")
        await asyncio.sleep(1)

        assert supervisor.health.why_not() == ""
        assert not supervisor.health.deaths
    assert [vars(one)["task_name"] for one in caplog.records if one.message == "A background task crashed"] == ["once"]


@given(
    lives=st.lists(
        st.tuples(st.floats(0.0, 90.0), st.sampled_from([failed, canceled, returned])), min_size=1, max_size=25
    ),
    most_deaths=st.integers(1, 9),
)
def test_process_ends_when_a_loop_died_so_often_in_a_row_and_never_before(
    lives: list[tuple[float, Die]], most_deaths: int
) -> None:
    """However long it lived each time, and whatever it died of."""
    limits, ended_after = RestartLimits(most_deaths=most_deaths), list[int]()

    async def live() -> None:
        lived = 0

        async def loop() -> None:
            nonlocal lived
            if lived == len(lives):
                await asyncio.Event().wait()
            seconds, die = lives[lived]
            await asyncio.sleep(seconds)
            lived += 1
            die()

        async with supervised(limits) as supervisor:
            supervisor.keep(loop, name="loop", critical=True)
            failing = asyncio.ensure_future(supervisor.health.failure())
            failing.add_done_callback(lambda _: ended_after.append(lived))
            await asyncio.sleep(sum(seconds for seconds, _ in lives) + 30.0 * len(lives) + 1)
            assert supervisor.health.deaths.total() == len(lives)
            failing.cancel()
            await asyncio.wait({failing})

    asyncio.run(live())

    in_a_row, expected = 0, len(lives)
    for number, (seconds, _) in enumerate(lives, 1):
        in_a_row = 1 if seconds >= limits.healthy_seconds else in_a_row + 1
        if in_a_row >= most_deaths:
            expected = number
            break
    assert ended_after == [expected]


Call = Callable[[asyncio.Event], Awaitable[Any]]


async def answered(begun: asyncio.Event) -> str:
    """As Python 3.11's `wait_for` when both come together."""
    begun.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "answer"
    raise AssertionError


async def refused(begun: asyncio.Event) -> str:
    await answered(begun)
    raise ConnectionError("lost")


async def hung(begun: asyncio.Event) -> None:
    begun.set()
    await asyncio.Event().wait()


async def forever(call: Call, begun: asyncio.Event) -> None:
    """An endless loop over calls of a library, each in the adapter's way."""
    connection = RedisConnection(
        "redis://localhost:1",
        timeout_seconds=60,
        unavailable=lambda step, reason: RegistryUnavailable("no", step=step, reason=reason),
    )
    while True:
        try:
            await connection.bounded("step", call(begun))
        except RegistryUnavailable:
            await asyncio.sleep(0)


@pytest.mark.parametrize("call", [answered, refused, hung])
async def test_endless_loop_ends_when_it_is_canceled_whatever_its_call_does(call: Call) -> None:
    begun = asyncio.Event()
    loop = asyncio.create_task(forever(call, begun))
    await begun.wait()

    loop.cancel()

    await asyncio.wait([loop], timeout=5)
    assert loop.cancelled()


async def test_time_limit_of_the_caller_is_heeded_too() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            with heeded():
                await answered(asyncio.Event())


async def test_cancellation_from_before_is_no_business_of_the_block() -> None:
    async def tidy() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            with heeded():
                return "tidied"
        raise AssertionError

    task = asyncio.create_task(tidy())
    await asyncio.sleep(0)
    task.cancel()

    assert await task == "tidied"
