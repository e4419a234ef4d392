"""Tokens of rate limits: what every registry promises about a bucket that agents share."""

from __future__ import annotations

import asyncio
from time import monotonic

from coditect.model.limits import Rate
from coditect.registry.port import Registry
from tests.support import eventually

SLOW = Rate("6/h", burst=4)


async def test_a_full_bucket_gives_its_burst_once_then_says_when_the_next_token_comes_and_is_no_other_s(
    registry: Registry,
) -> None:
    assert (await registry.lease_tokens("page.fetch", SLOW, 3)).tokens == 3

    rest = await registry.lease_tokens("page.fetch", SLOW, 3)
    none = await registry.lease_tokens("page.fetch", SLOW, 3)

    assert (rest.tokens, none.tokens) == (1, 0)
    assert 590 < none.wait_seconds <= 600

    other = await registry.lease_tokens("page.index", SLOW, 1)
    assert other.tokens == 1


async def test_tokens_come_back_at_the_rate_and_never_faster(registry: Registry) -> None:
    rate, began, got = Rate("100/s", burst=10), monotonic(), 0
    while monotonic() - began < 0.5:
        got += (await registry.lease_tokens("page.fetch", rate, 5)).tokens
        await asyncio.sleep(0.002)

    assert 30 <= got <= rate.capacity + 100 * (monotonic() - began)


async def test_the_next_token_is_there_after_the_wait(registry: Registry) -> None:
    rate = Rate("20/s", burst=1)
    first = await registry.lease_tokens("page.fetch", rate, 1)
    assert (first.tokens, 0 < first.wait_seconds <= 0.05) == (1, True)

    async def leased() -> bool:
        return (await registry.lease_tokens("page.fetch", rate, 1)).tokens == 1

    await eventually(leased)


async def test_the_slowest_rate_that_was_asked_by_holds_for_all(registry: Registry) -> None:
    fast, slow = Rate("1000/s", burst=1000), Rate("1/h", burst=1)
    await registry.lease_tokens("page.fetch", slow, 1)

    held = await registry.lease_tokens("page.fetch", fast, 100)

    assert held.tokens == 0
    assert held.wait_seconds > 3000
    assert held.hold_seconds == slow.hold_seconds
