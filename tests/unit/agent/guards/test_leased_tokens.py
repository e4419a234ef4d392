"""The tokens that one agent process holds: leased in batches, each used once and in time, or lost."""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.agent.guards import LEASE_RETRY_SECONDS, LeasedTokens
from coditect.model.limits import Rate
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import TokenLease

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
