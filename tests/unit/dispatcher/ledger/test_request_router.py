"""A verb of the control plane is one entry in one table, and its handler."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from enum import StrEnum
from typing import Any, cast

import pytest

from coditect.aio.clock import SystemClock
from coditect.client.control_plane import ControlPlane, asking
from coditect.errors import InvalidTask
from coditect.model.ids import TaskId
from coditect.wire.control import Verb
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.keyspace import ROOT
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows.submit import text
from dispatcher.shards import verbs
from dispatcher.store.transaction import Reads
from tests.unit.dispatcher.test_status import SHARDS, Plane


class MadeUp(StrEnum):
    """Verbs of a layer that the product does not have."""

    TAKE = "lock.take"
    LOOK = "lock.look"


TAKE, LOOK = cast("Verb", MadeUp.TAKE), cast("Verb", MadeUp.LOOK)
LOCKS = [f"lock-{number}" for number in range(8)]


class SameId(SystemClock):
    """A clock whose ids are one id, so that every request repeats the one before."""

    def new_id(self) -> TaskId:
        return TaskId("0199-the-same")


def take(unit: UnitOfWork, body: Mapping[str, Any]) -> dict[str, Any]:
    key = ROOT.pack(("made-up", lock_of(body)))
    taken = int(unit.tr.get(key) or 0) + 1
    unit.tr.set(key, str(taken).encode())
    return {"shard": unit.shard, "taken": taken}


def look(tr: Reads, body: Mapping[str, Any]) -> dict[str, Any]:
    return {"taken": int(tr.get(ROOT.pack(("made-up", lock_of(body)))) or 0)}


def lock_of(body: Mapping[str, Any]) -> str:
    return text(body, "lock")


@pytest.fixture
async def plane() -> AsyncIterator[Plane]:
    async with AsyncExitStack() as stack:
        plane = Plane(stack)
        await plane.open()
        yield plane


def add(monkeypatch: pytest.MonkeyPatch, **made_up: Query | ShardChange) -> None:
    known = {f"lock.{name}": handling for name, handling in made_up.items()}
    handling = verbs.handling
    monkeypatch.setattr(verbs, "handling", lambda verb: known.get(verb) or handling(verb))


async def test_made_up_verbs_are_served_by_the_shards_that_their_keys_name_and_read_everywhere(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, take=ShardChange(take, lock_of), look=Query(look))

    async with asking(plane.broker, SystemClock(), name="asks") as control:
        taken = [await control.ask(TAKE, {"lock": lock}) for lock in LOCKS]
        seen = [await control.ask(LOOK, {"lock": lock}) for lock in LOCKS]

    assert taken == [{"shard": shard_of(lock, SHARDS), "taken": 1} for lock in LOCKS]
    assert {one["shard"] for one in taken} == set(range(SHARDS)), "some of both dispatchers"
    assert seen == [{"taken": 1}] * len(LOCKS)


@pytest.mark.parametrize(("deduplicated", "times"), [(True, 1), (False, 2)])
async def test_repeated_request_of_a_made_up_verb_is_done_once_where_its_entry_says_so(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, deduplicated: bool, times: int
) -> None:
    add(monkeypatch, take=ShardChange(take, lock_of, deduplicated=deduplicated), look=Query(look))

    async with asking(plane.broker, SameId(), name="asks") as control:
        answers = [await control.ask(TAKE, {"lock": "a"}) for _ in range(2)]
        seen = await control.ask(LOOK, {"lock": "a"})

    assert ([one["taken"] for one in answers], seen["taken"]) == ([1, times], times)


async def refused(control: ControlPlane, verb: Verb) -> str:
    with pytest.raises(InvalidTask) as caught:
        await control.ask(verb, {})
    return caught.value.sentence


async def test_verb_without_an_entry_and_request_without_a_key_are_refused(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, take=ShardChange(take, lock_of))

    async with asking(plane.broker, SystemClock(), name="asks") as control:
        assert await refused(control, LOOK) == "The control plane does not know this verb"
        assert await refused(control, TAKE) == "A field of the request is missing or no text"


def test_every_verb_has_a_handler_and_every_kept_thing_is_found_by_its_noun() -> None:
    without = {verb for verb in Verb if verbs.handling(verb) is None}

    assert without == {Verb.CLAIM, Verb.GET, Verb.RESULT, Verb.STATUS, Verb.REBUILD}, (
        "the request server serves these itself"
    )
    assert {verb.partition(".")[0] for verb in Verb} > verbs.COORDINATION.keys()
    assert verbs.handling("lock.unheard-of") is verbs.handling("os.path") is None
