"""Requests: each verb is an entry of a table, and one that comes again is told what it was told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Any, cast

import pytest

from coditect import Workflow
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker
from coditect.errors import InputError, InvalidTask, NotFound, Retryable
from coditect.messaging.control_plane import ControlPlane, asking, refusal
from coditect.model.ids import TaskId
from coditect.wire.control import Verb, request
from coditect.wire.tasks import read_result
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import RECORD_LESSONS, Asked
from dispatcher.ledger.errors import ValueBeyondBound
from dispatcher.ledger.handlers import requests
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.keyspace import ROOT
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.ledger.workflows.submit import text
from dispatcher.requests.server import answer_message, identity_of
from dispatcher.shards import verbs
from dispatcher.store.transaction import Reads
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed
from tests.unit.dispatcher.test_program import SHARDS, two_dispatchers

WORKFLOW = {"workflow": "w"}
NODE = {"workflow": "w", "node": "a"}
GRANT = {"workflow": "w", "node": "gate", "granted": True, "by": "ada"}


async def start(ledger: Ledger) -> None:
    flow = Workflow("gated")
    gate = flow.approval("ship it?", after=[flow.task("work", name="a")], name="gate")
    flow.task("work", after=[gate], name="ship")
    await ledger.start(flow)


async def fail(ledger: Ledger) -> None:
    """Whatever is published fails."""
    await ledger.play(lambda _: failed())


async def succeed(ledger: Ledger) -> None:
    await ledger.play(lambda _: completed(1))


async def resume(ledger: Ledger) -> None:
    await ledger.ask(Verb.RESUME, WORKFLOW)


async def redrive(ledger: Ledger) -> None:
    await ledger.ask(Verb.REDRIVE, NODE)


async def pause(ledger: Ledger) -> None:
    await ledger.ask(Verb.PAUSE, WORKFLOW)


async def nothing(ledger: Ledger) -> None:
    pass


Step = Callable[[Ledger], Awaitable[None]]
CASES: list[Any] = [
    pytest.param(fail, Asked(Verb.REDRIVE, NODE, "i"), fail, id="redriven, and failed again"),
    pytest.param(fail, Asked(Verb.RESUME, WORKFLOW, "i"), fail, id="resumed, and failed again"),
    pytest.param(pause, Asked(Verb.RESUME, WORKFLOW, "i"), pause, id="resumed, and paused again"),
    pytest.param(nothing, Asked(Verb.PAUSE, WORKFLOW, "i"), resume, id="paused, and resumed"),
    pytest.param(nothing, Asked(Verb.CANCEL, WORKFLOW, "i"), redrive, id="canceled, and redriven"),
    pytest.param(succeed, Asked(Verb.ANSWER, GRANT, "i"), nothing, id="answered"),
    pytest.param(succeed, Asked(Verb.ANSWER, GRANT, "i"), fail, id="answered, and what came after it failed"),
]


@pytest.mark.parametrize(("before", "asked", "between"), CASES)
async def test_repeated_request_changes_nothing(ledger: Ledger, before: Step, asked: Asked, between: Step) -> None:
    await start(ledger)
    await before(ledger)
    (told,) = await ledger.batch(asked)
    await between(ledger)
    ledger.published.clear()
    was = await ledger.everything()

    (again,) = await ledger.batch(asked)
    twice = await ledger.batch(asked, asked)

    assert not isinstance(told, Exception)
    assert [again, *twice] == [told] * 3
    assert ledger.published == []
    assert await ledger.everything() == was


async def test_another_request_for_the_same_is_done(ledger: Ledger) -> None:
    await start(ledger)
    await fail(ledger)
    await ledger.batch(Asked(Verb.REDRIVE, NODE, "one"))
    await fail(ledger)

    (told,) = await ledger.batch(Asked(Verb.REDRIVE, NODE, "two"))
    fence = (await ledger.node("a")).fence
    await fail(ledger)
    await ledger.batch(Asked(Verb.REDRIVE, NODE), Asked(Verb.REDRIVE, NODE))

    assert told["again"] == ["a", "gate", "ship"]
    assert fence == 3
    assert (await ledger.node("a")).fence == 4, "without an identity each is a request of its own"


async def test_refused_request_is_not_done_later_behind_its_client_s_back(ledger: Ledger) -> None:
    asked = Asked(Verb.ANSWER, GRANT, "i")
    await start(ledger)
    (refused,) = await ledger.batch(asked)
    await succeed(ledger)

    (again,) = await ledger.batch(asked)

    assert isinstance(refused, InputError)
    message = request(Verb.ANSWER, GRANT, reply_to=None, correlation_id="m")
    assert type(again) is type(refused)
    assert answer_message(message, again) == answer_message(message, refused)
    assert (await ledger.node("gate")).state is TaskState.AWAITING_APPROVAL


@pytest.mark.parametrize(
    ("asked", "kind", "told"),
    [
        (Asked(Verb.CANCEL, {"workflow": "nobody's"}, "i"), NotFound, NotFound),
        (Asked(Verb.REDRIVE, NODE | {"input": {"path": "x" * LARGEST_BYTES}}, "i"), ValueBeyondBound, InputError),
    ],
    ids=["known to clients", "unknown to clients"],
)
async def test_refusal_is_repeated(ledger: Ledger, asked: Asked, kind: type[Exception], told: type[Exception]) -> None:
    await start(ledger)
    await fail(ledger)
    (refused,), (again,) = await ledger.batch(asked), await ledger.batch(asked)

    message = request(asked.verb, NODE, reply_to=None, correlation_id="m")
    answer = answer_message(message, refused)
    assert type(refused) is kind
    assert type(refusal(read_result(answer))) is told
    assert answer_message(message, again) == answer


async def test_request_that_was_put_off_is_done_later(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(Verb.CANCEL, WORKFLOW, "i")
    await start(ledger)

    def not_now(*_: object) -> dict[str, Any]:
        raise Retryable("Not now")

    with monkeypatch.context() as patched:
        patched.setattr(verbs, "handling", lambda _: requests.ShardChange(not_now))
        (refused,) = await ledger.batch(asked)
    await ledger.batch(asked)

    assert isinstance(refused, Retryable)
    assert await ledger.state() is WorkflowState.CANCELED


def test_the_same_message_is_the_same_request_and_another_with_its_id_is_not() -> None:
    def identity(verb: Verb = Verb.PAUSE, workflow: str = "w", *, reply_to: str = "r", message: str = "1") -> str:
        return identity_of(request(verb, {"workflow": workflow}, reply_to=reply_to, correlation_id=message))

    assert identity() == identity(reply_to="other")
    assert identity() not in (identity(Verb.RESUME), identity(workflow="x"), identity(message="2"))
    assert identity(message="") == ""
    assert identity(message="\ud800")


class MadeUp(StrEnum):
    """Verbs of a layer that the product does not have, and one that is no verb of requests."""

    TAKE = "lock.take"
    LOOK = "lock.look"
    RECORD = RECORD_LESSONS


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
async def broker() -> AsyncIterator[MemoryBroker]:
    async with two_dispatchers() as (_, _, connected):
        yield connected


def add(monkeypatch: pytest.MonkeyPatch, **made_up: Query | ShardChange) -> None:
    known = {f"lock.{name}": handling for name, handling in made_up.items()}
    handling = verbs.handling
    monkeypatch.setattr(verbs, "handling", lambda verb: known.get(verb) or handling(verb))


async def test_verbs_are_served_by_their_keys_shards(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, take=ShardChange(take, lock_of), look=Query(look))

    async with asking(broker, SystemClock(), name="asks") as control:
        taken = [await control.ask(TAKE, {"lock": lock}) for lock in LOCKS]
        seen = [await control.ask(LOOK, {"lock": lock}) for lock in LOCKS]

    assert taken == [{"shard": shard_of(lock, SHARDS), "taken": 1} for lock in LOCKS]
    assert {one["shard"] for one in taken} == set(range(SHARDS)), "some of both dispatchers"
    assert seen == [{"taken": 1}] * len(LOCKS)


@pytest.mark.parametrize(("deduplicated", "times"), [(True, 1), (False, 2)])
async def test_repeated_request_of_a_made_up_verb_is_done_once_where_its_entry_says_so(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, deduplicated: bool, times: int
) -> None:
    add(monkeypatch, take=ShardChange(take, lock_of, deduplicated=deduplicated), look=Query(look))

    async with asking(broker, SameId(), name="asks") as control:
        answers = [await control.ask(TAKE, {"lock": "a"}) for _ in range(2)]
        seen = await control.ask(LOOK, {"lock": "a"})

    assert ([one["taken"] for one in answers], seen["taken"]) == ([1, times], times)


async def refused(control: ControlPlane, verb: Verb) -> str:
    with pytest.raises(InvalidTask) as caught:
        await control.ask(verb, {})
    return caught.value.sentence


async def test_request_without_key_or_verb_is_refused(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, take=ShardChange(take, lock_of))
    assert verbs.handling(MadeUp.RECORD) is not None

    async with asking(broker, SystemClock(), name="asks") as control:
        assert await refused(control, TAKE) == "A field of the request is missing or no text"
        for verb in (LOOK, cast("Verb", MadeUp.RECORD)):
            assert await refused(control, verb) == "The control plane does not know this verb"


def test_every_verb_has_a_handler_and_every_kept_thing_is_found_by_its_noun() -> None:
    without = {verb for verb in Verb if verbs.handling(verb) is None}

    assert without == {Verb.CLAIM, Verb.GET, Verb.RESULT, Verb.STATUS, Verb.REBUILD}, (
        "the request server serves these itself; any other verb stands in a table, such as `schedules.SCHEDULE_VERBS`"
    )
    assert {verb.partition(".")[0] for verb in Verb} > verbs.COORDINATION.keys() - {"lesson"}
    assert verbs.handling("lock.unheard-of") is verbs.handling("os.path") is None
