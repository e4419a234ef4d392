"""Rates of capabilities: the whole fleet begins no more executions than declared, and the others wait in queues."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from math import ceil

import pytest

from coditect import Agent, Breaker, Context, Rate, Retry, Workflow
from coditect.agent.guards import LEASE_RETRY_SECONDS, LeasedTokens
from coditect.model.capability import Priority
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search, TokenLease
from coditect.testing import TestFleet
from coditect.wire import routing


@dataclass
class Starts:
    """When executions of a rated capability began, in virtual seconds."""

    at: list[float] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)

    def begin(self, attempt: int = 1) -> None:
        self.at.append(asyncio.get_running_loop().time())
        self.attempts.append(attempt)

    def exceeds(self, rate: Rate) -> list[tuple[float, int]]:
        """The spans, from one start to another, in which more began than the rate and its burst allow."""
        per_second, most = rate.per_second, rate.most_at_once
        return [
            (span, count)
            for first, began in enumerate(self.at)
            for count, at in enumerate(self.at[first:], 1)
            if count > ceil(per_second * (span := at - began) + 1e-6) + most
        ]


def worker(starts: Starts, rate: Rate | str, *, name: str = "worker", retry: int | Retry = 1) -> Agent:
    agent = Agent(name, slots=8)

    @agent.capability("page.fetch", rate=rate, retry=retry)
    async def fetch(number: int, ctx: Context) -> int:
        starts.begin(ctx.attempt)
        if number < 0 and ctx.attempt < 3:
            raise OSError("the site is down")
        return number

    @agent.capability("page.count")
    async def count(number: int) -> int:
        return number

    return agent


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("rate", [Rate("10/s"), Rate("100/m"), Rate("60/m", burst=10), Rate("200/s"), Rate("2/s", 1)])
async def test_executions_begin_at_the_rate_in_the_whole_fleet_and_never_faster(rate: Rate, replicas: int) -> None:
    starts = Starts()
    many = int(20 * rate.per_second) if rate.per_second < 100 else 800
    async with TestFleet(agents=[worker(starts, rate)], replicas=replicas) as fleet:
        handles = [await fleet.submit("page.fetch", number) for number in range(many)]

        assert [await handle.result() for handle in handles] == list(range(many))

    assert starts.exceeds(rate) == []
    assert starts.at[-1] - starts.at[0] <= 1.5 * many / rate.per_second + 2, "the rate is used"
    assert set(starts.attempts) == {1}, "a wait burns no attempt"


async def test_what_waits_for_the_rate_waits_in_its_queue_and_other_capabilities_go_on() -> None:
    starts = Starts()
    async with TestFleet(agents=[worker(starts, "6/m")]) as fleet:
        for number in range(30):
            await fleet.submit("page.fetch", number)
        await fleet.advance("5s")

        queue = fleet.server.find(routing.task_queue("page.fetch", Priority.P1))
        assert queue is not None
        assert queue.stats.messages == 29
        assert await fleet.request("page.count", 3) == 3
        (record,) = await fleet.registry.find(Search())
        assert record.load.limited == (("page.fetch", "6/m"),)
        assert record.load.running == 0


async def test_retries_count_as_executions() -> None:
    starts, rate = Starts(), Rate("1/s", burst=1)
    async with TestFleet(agents=[worker(starts, rate, retry=Retry(max_attempts=3, first="10ms"))]) as fleet:
        handles = [await fleet.submit("page.fetch", -number) for number in range(1, 4)]

        assert [await handle.result() for handle in handles] == [-1, -2, -3]

    assert len(starts.at) == 9
    assert starts.exceeds(rate) == []
    assert max(starts.attempts) == 3


async def test_tasks_of_workflows_have_the_same_rate_and_burn_no_attempt() -> None:
    starts, rate = Starts(), Rate("2/s", burst=2)
    flow = Workflow("fetches")
    for number in range(20):
        flow.task("page.fetch", number, name=f"n{number}")
    async with TestFleet(agents=[worker(starts, rate)], replicas=2) as fleet:
        run = await fleet.start(flow)
        direct = [await fleet.submit("page.fetch", number) for number in range(10)]

        await run.result()
        assert [await handle.result() for handle in direct] == list(range(10))

    assert len(starts.at) == 30
    assert starts.exceeds(rate) == []
    assert set(starts.attempts) == {1}


async def test_the_slowest_of_several_declared_rates_holds_for_all_agents() -> None:
    starts, slow = Starts(), Rate("2/s", burst=1)
    agents = [worker(starts, slow, name="old"), worker(starts, "100/s", name="new")]
    async with TestFleet(agents=agents) as fleet:
        handles = [await fleet.submit("page.fetch", number) for number in range(30)]
        await fleet.advance("1s")  # both have asked
        known = len(starts.at)

        assert [await handle.result() for handle in handles] == list(range(30))

    starts.at = starts.at[known:]
    assert starts.exceeds(slow) == []


async def test_without_the_registry_nothing_begins_and_afterwards_the_work_goes_on() -> None:
    starts = Starts()
    async with TestFleet(agents=[worker(starts, Rate("10/s", burst=1))], replicas=2) as fleet:
        fleet.registry.failing = True
        handles = [await fleet.submit("page.fetch", number) for number in range(10)]
        await fleet.advance("30s")
        assert starts.at == []
        assert await fleet.request("page.count", 1) == 1

        fleet.registry.failing = False
        assert [await handle.result() for handle in handles] == list(range(10))


async def test_a_breaker_that_closes_does_not_end_the_wait_for_the_rate() -> None:
    starts, rate = Starts(), Rate("12/m", burst=1)
    agent, github = Agent("worker"), Breaker("github", failures=2, on=(OSError,), reset="10s")

    @agent.capability("page.fetch", rate=rate, breaker=github)
    async def fetch(number: int) -> int:
        starts.begin()
        return number

    async with TestFleet(agents=[agent], replicas=2) as fleet:
        handles = [await fleet.submit("page.fetch", number) for number in range(10)]
        await fleet.advance("2s")
        for _ in range(2):
            with pytest.raises(OSError, match="down"):
                async with fleet.client.breaker(github):
                    raise OSError("down")
        tripped = len(starts.at)
        await fleet.advance("9s")
        assert len(starts.at) == tripped

        assert [await handle.result() for handle in handles] == list(range(10))

    assert starts.exceeds(rate) == []


async def test_the_tokens_of_a_killed_agent_are_not_missed() -> None:
    starts, rate = Starts(), Rate("20/s")
    async with TestFleet(agents=[worker(starts, rate)], replicas=2) as fleet:
        handles = [await fleet.submit("page.fetch", number) for number in range(200)]
        await fleet.advance("2s")
        fleet.kill("worker-1")
        killed = fleet.elapsed_seconds

        assert [await handle.result() for handle in handles] == list(range(200))
        assert fleet.elapsed_seconds - killed <= 1.5 * 160 / 20 + 5
    assert starts.exceeds(rate) == []


async def test_urgent_tasks_come_first_while_the_rate_is_short() -> None:
    starts = Starts()
    async with TestFleet(agents=[worker(starts, Rate("1/s", burst=1))]) as fleet:
        for number in range(40):
            await fleet.submit("page.fetch", number, priority="p2")
        await fleet.advance("3s")
        urgent = await fleet.submit("page.fetch", 1_000, priority="p0")
        before = len(starts.at)
        assert await urgent.result() == 1_000

    assert len(starts.at) - before <= 3


RATE = Rate("100/s", burst=100)


@dataclass
class Counting(MemoryRegistry):
    """A registry in which a test sets the time, and sees the leases."""

    now: float = 1_000.0
    given: list[TokenLease] = field(default_factory=list)

    def __post_init__(self) -> None:
        MemoryRegistry.__init__(self, now=lambda: self.now)

    async def lease_tokens(self, capability: str, rate: Rate, wanted: int) -> TokenLease:
        self.given.append(await super().lease_tokens(capability, rate, wanted))
        return self.given[-1]


def tokens(registry: Counting, rate: Rate = RATE) -> LeasedTokens:
    return LeasedTokens("page.fetch", rate, registry, now=lambda: registry.now)


async def test_a_batch_grows_while_it_is_used_up_so_that_few_tokens_need_a_question() -> None:
    registry = Counting()
    held = tokens(registry)

    assert [await held.take() for _ in range(RATE.capacity)] == [True] * RATE.capacity

    assert len(registry.given) <= 7
    assert not await held.take()


async def test_tokens_that_were_held_too_long_are_lost() -> None:
    registry = Counting()
    held = tokens(registry)
    for _ in range(8):
        await held.take()
    left = sum(lease.tokens for lease in registry.given) - 8
    assert left > 0

    registry.now += RATE.hold_seconds
    many = len(registry.given)

    assert await held.take()
    assert len(registry.given) == many + 1


async def test_a_promised_token_is_left_to_the_task_that_is_fetched() -> None:
    registry = Counting()
    held = tokens(registry, Rate("1/h", burst=1))

    assert await held.promise()
    assert not await held.promise()
    assert await held.take()
    assert not await held.take()


async def test_an_empty_bucket_is_not_asked_before_its_next_token_is_due() -> None:
    registry = Counting()
    held = tokens(registry, Rate("1/s", burst=1))
    assert await held.take()

    assert [await held.take() for _ in range(10)] == [False] * 10

    assert len(registry.given) == 1
    assert held.pause_seconds(0.0) == 1.0
    registry.now += 1.0
    assert await held.take()


async def test_without_an_answer_of_the_registry_there_are_no_tokens_and_few_questions() -> None:
    registry = Counting()
    registry.failing = True
    held = tokens(registry)

    assert [await held.take() for _ in range(10)] == [False] * 10
    assert held.trouble

    registry.failing = False
    assert not await held.take()
    registry.now += LEASE_RETRY_SECONDS
    assert await held.take()
    assert not held.trouble
