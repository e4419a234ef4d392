"""Breakers of a fleet in one shard, asked for request by request: the test plays the agents and time."""

from __future__ import annotations

from typing import Any

import pytest

from coditect.errors import InvalidTask
from coditect.model.limits import BreakerState
from coditect.wire import control_messages
from coditect.wire.control import Verb
from coditect.wire.json import loads
from dispatcher.coordination.breakers import list_breakers
from tests.unit.dispatcher.lone_ledger import Ledger

RESET_MS = 10_000


async def ask(ledger: Ledger, verb: Verb, **body: Any) -> BreakerState:
    return BreakerState.read(await ledger.ask(verb, {"name": "github", "by": "a", "reset_ms": RESET_MS} | body))


async def opened(ledger: Ledger) -> BreakerState:
    return await ask(ledger, Verb.BREAKER_TRIP, reason="5 failures in a row")


def told(ledger: Ledger) -> list[bool]:
    """Whether the breaker was open, by each broadcast so far."""
    assert {(out.exchange, out.message.type) for out in ledger.messages} <= {
        ("coditect.broadcast", control_messages.BREAKER_NEWS)
    }
    return [loads(out.message.body)["open"] for out in ledger.messages]


async def test_a_trip_opens_the_breaker_once_and_is_broadcast(ledger: Ledger) -> None:
    first = await opened(ledger)
    second = await ask(ledger, Verb.BREAKER_TRIP, by="b", reason="late")

    assert (first.open, first.retry_ms, first.reason, first.by) == (True, RESET_MS, "5 failures in a row", "a")
    assert (second.version, second.by) == (first.version, "a")
    assert told(ledger) == [True]


async def test_each_interval_has_one_permit_in_the_whole_fleet(ledger: Ledger) -> None:
    await opened(ledger)
    assert not (await ask(ledger, Verb.BREAKER_PERMIT)).permit

    for _ in range(3):
        await ledger.pass_time(RESET_MS / 1000)
        permits = [(await ask(ledger, Verb.BREAKER_PERMIT, by=f"agent-{number}")).permit for number in range(20)]
        assert [permit > 0 for permit in permits] == [True, *[False] * 19]


@pytest.mark.parametrize("succeeded", [True, False])
async def test_a_probe_closes_the_breaker_or_leaves_it_open_for_an_interval(ledger: Ledger, succeeded: bool) -> None:
    await opened(ledger)
    await ledger.pass_time(RESET_MS / 1000)
    permit = (await ask(ledger, Verb.BREAKER_PERMIT)).permit
    await ledger.pass_time(RESET_MS / 2000)
    state = await ask(ledger, Verb.BREAKER_DECIDE, permit=permit, succeeded=succeeded)

    assert (state.open, state.retry_ms) == ((False, None) if succeeded else (True, RESET_MS))
    assert told(ledger)[:2] == [True, True]
    assert (told(ledger)[-1] is False) == succeeded


async def test_a_probe_from_before_the_breaker_opened_again_decides_nothing(ledger: Ledger) -> None:
    await opened(ledger)
    await ledger.pass_time(RESET_MS / 1000)
    permit = (await ask(ledger, Verb.BREAKER_PERMIT)).permit
    await ask(ledger, Verb.BREAKER_RESET)
    await opened(ledger)

    assert (await ask(ledger, Verb.BREAKER_DECIDE, permit=permit, succeeded=True)).open


async def test_a_breaker_held_open_by_an_operator_has_no_probes_until_it_is_reset(ledger: Ledger) -> None:
    held = await ask(ledger, Verb.BREAKER_HOLD, reason="maintenance")
    await ledger.pass_time(3600)

    assert (held.open, held.retry_ms) == (True, None)
    assert not (await ask(ledger, Verb.BREAKER_PERMIT)).permit
    reset = await ask(ledger, Verb.BREAKER_RESET)
    assert not reset.open
    assert reset.version > held.version


async def test_the_list_shows_open_breakers_or_one_and_nobody_waits_for_more_than_an_interval(ledger: Ledger) -> None:
    async def listed(**body: Any) -> dict[str, int | None]:
        page = await ledger.database.run(lambda tr: list_breakers(tr, body))
        return {one["name"]: one["retry_ms"] for one in page["breakers"]}

    await opened(ledger)
    for _ in range(30):
        await ledger.pass_time(RESET_MS / 1000)
        permit = (await ask(ledger, Verb.BREAKER_PERMIT)).permit
        await ask(ledger, Verb.BREAKER_DECIDE, permit=permit, succeeded=False)
    await ask(ledger, Verb.BREAKER_HOLD, name="gitlab", reason="maintenance")
    await ask(ledger, Verb.BREAKER_RESET, name="closed")

    assert [*await listed()] == ["closed", "github", "gitlab"]
    assert await listed(open=True) == {"github": RESET_MS, "gitlab": None}
    assert [*await listed(name="closed")] == ["closed"]


@pytest.mark.parametrize("wrong", [{"name": ""}, {"name": "x" * 201}, {"reset_ms": 0}])
async def test_a_request_that_names_no_breaker_is_refused(ledger: Ledger, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask):
        await ask(ledger, Verb.BREAKER_TRIP, **wrong)
