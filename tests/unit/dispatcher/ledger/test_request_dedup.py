"""A request that comes again is told what it was told, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coditect import Workflow
from coditect.client.control_plane import refusal
from coditect.errors import InputError, NotFound, Retryable
from coditect.wire.control import Verb, request
from coditect.wire.tasks import read_result
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.errors import ValueBeyondBound
from dispatcher.ledger.handlers import requests
from dispatcher.ledger.values import LARGEST_BYTES
from dispatcher.requests.server import answer_message, identity_of
from dispatcher.shards import verbs
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed

WORKFLOW = {"workflow": "w"}
NODE = {"workflow": "w", "node": "a"}
GRANT = {"workflow": "w", "node": "gate", "granted": True, "by": "ada"}


async def start(ledger: Ledger) -> None:
    flow = Workflow("gated")
    gate = flow.approval("ship it?", after=[flow.task("work", name="a")], name="gate")
    flow.task("work", after=[gate], name="ship")
    await ledger.start(flow.definition())


async def fail(ledger: Ledger) -> None:
    """Whatever is published fails."""
    while ledger.published:
        await ledger.batch(ledger.finished(ledger.published.pop(), failed()))


async def succeed(ledger: Ledger) -> None:
    while ledger.published:
        await ledger.batch(ledger.finished(ledger.published.pop(), completed(1)))


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


async def everything(ledger: Ledger) -> dict[bytes, bytes]:
    return dict(await ledger.database.read(lambda tr: tr.get_range(b"", b"\xff")))


@pytest.mark.parametrize(("before", "asked", "between"), CASES)
async def test_request_that_comes_again_is_told_the_same_and_changes_nothing(
    ledger: Ledger, before: Step, asked: Asked, between: Step
) -> None:
    await start(ledger)
    await before(ledger)
    (told,) = await ledger.batch(asked)
    await between(ledger)
    ledger.published.clear()
    was = await everything(ledger)

    (again,) = await ledger.batch(asked)
    twice = await ledger.batch(asked, asked)

    assert not isinstance(told, Exception)
    assert [again, *twice] == [told] * 3
    assert ledger.published == []
    assert await everything(ledger) == was


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


async def test_refusal_keeps_its_kind(ledger: Ledger) -> None:
    asked = Asked(Verb.CANCEL, {"workflow": "nobody's"}, "i")

    (refused,), (again,) = await ledger.batch(asked), await ledger.batch(asked)

    assert isinstance(again, NotFound)
    assert (again.sentence, again.facts) == (refused.sentence, refused.facts)


async def test_refusal_of_a_kind_that_clients_do_not_have_is_told_the_same_again(ledger: Ledger) -> None:
    large = {"path": "x" * LARGEST_BYTES}
    asked = Asked(Verb.REDRIVE, NODE | {"input": large}, "i")
    await start(ledger)
    await fail(ledger)

    (refused,), (again,) = await ledger.batch(asked), await ledger.batch(asked)

    message = request(Verb.REDRIVE, NODE, reply_to=None, correlation_id="m")
    told = read_result(answer_message(message, refused))
    assert isinstance(refused, ValueBeyondBound)
    assert type(refusal(told)) is InputError
    assert answer_message(message, again) == answer_message(message, refused)


async def test_request_that_was_told_to_try_again_is_done_when_it_comes_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    one = request(Verb.PAUSE, WORKFLOW, reply_to="r", correlation_id="1")

    assert identity_of(one) == identity_of(request(Verb.PAUSE, WORKFLOW, reply_to="other", correlation_id="1"))
    assert identity_of(one) != identity_of(request(Verb.RESUME, WORKFLOW, reply_to="r", correlation_id="1"))
    assert identity_of(one) != identity_of(request(Verb.PAUSE, {"workflow": "x"}, reply_to="r", correlation_id="1"))
    assert identity_of(one) != identity_of(request(Verb.PAUSE, WORKFLOW, reply_to="r", correlation_id="2"))
    assert identity_of(request(Verb.PAUSE, WORKFLOW, reply_to="r", correlation_id="")) == ""
    assert identity_of(request(Verb.PAUSE, WORKFLOW, reply_to="r", correlation_id="\ud800"))
