"""Locks of one shard, asked for request by request: the test plays the owners and time."""

from __future__ import annotations

from typing import Any

import pytest

from coditect.errors import InvalidTask
from coditect.wire.control import Verb
from tests.unit.dispatcher.ledger import Ledger

TTL_MS = 10_000


async def acquire(ledger: Ledger, ticket: str, *resources: str, mode: str = "exclusive", **more: Any) -> dict[str, Any]:
    owner = {"agent": "a", "task": "t", "owner": ticket}
    body = {"ticket": ticket, "resources": [*(resources or ("repo:x",))], "mode": mode, "ttl_ms": TTL_MS}
    answer: dict[str, Any] = await ledger.ask(Verb.LOCK_ACQUIRE, body | owner | more)
    return answer


async def release(ledger: Ledger, ticket: str) -> bool:
    return bool((await ledger.ask(Verb.LOCK_RELEASE, {"ticket": ticket}))["released"])


async def test_a_taken_lock_is_refused_until_it_is_released_and_each_grant_has_a_higher_fence(ledger: Ledger) -> None:
    first = await acquire(ledger, "1")
    taken = await acquire(ledger, "2", wait=False)

    assert await release(ledger, "1")
    second = await acquire(ledger, "3")

    assert (first["state"], taken["state"], second["state"]) == ("held", "taken", "held")
    assert second["fence"] > first["fence"] > 0
    assert not await release(ledger, "1")


async def test_a_repeated_request_gets_the_same_grant(ledger: Ledger) -> None:
    assert await acquire(ledger, "1") == await acquire(ledger, "1")


async def test_a_lock_that_is_not_renewed_is_gone_after_its_time(ledger: Ledger) -> None:
    await acquire(ledger, "1")

    await ledger.pass_time(TTL_MS / 1000)

    assert (await acquire(ledger, "2"))["state"] == "held"


@pytest.mark.parametrize("wrong", [{"resources": []}, {"resources": "x"}, {"mode": "odd"}, {"owner": ""}])
async def test_a_request_that_is_no_lock_is_refused(ledger: Ledger, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask):
        await acquire(ledger, "1", **wrong)
