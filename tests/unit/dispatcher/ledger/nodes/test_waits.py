"""Nodes that wait for an instant or a signal, in the ledger: the test plays time, and who sends signals."""

from __future__ import annotations

from typing import Any

import pytest

from coditect.errors import InputError, InvalidTask, NotFound
from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.keyspace import AWAITING, DUE, SIGNALS, SIGNALS_KEPT, TIMERS
from dispatcher.ledger.nodes.waits import MOST_KEPT
from dispatcher.ledger.workflows.queries import result
from tests.unit.dispatcher.lone_ledger import Ledger, completed


async def signal(ledger: Ledger, name: str, value: Any = None, *, identity: str, workflow: str = "w") -> Any:
    return await ledger.ask(Verb.SIGNAL, {"workflow": workflow, "signal": name, "value": value, "id": identity})


async def value_of(ledger: Ledger, node: str, workflow: str = "w") -> Any:
    answer = await ledger.database.read(lambda tr: result(tr, {"workflow": workflow, "node": node}))
    return answer["value"]


async def left(ledger: Ledger) -> list[bytes]:
    """What the store still has of waits: timers, nodes that await a signal, and signals that nobody took."""
    ranges = [space.range() for space in (TIMERS, DUE, AWAITING, SIGNALS_KEPT)]
    found = await ledger.database.read(lambda tr: tr.get_ranges(ranges))
    return [key for rows in found for key, _ in rows]


async def test_a_wait_ends_after_its_period_and_its_dependents_run(ledger: Ledger) -> None:
    flow = Workflow("later")
    flow.task("work", after=[flow.wait("2h", name="pause")], name="then")
    await ledger.start(flow.definition())

    await ledger.pass_time(7_199)
    before = await ledger.states()
    await ledger.pass_time(1)
    await ledger.play(lambda _: completed(1))

    assert before == {"pause": TaskState.WAITING, "then": TaskState.BLOCKED}
    assert await ledger.state() is WorkflowState.COMPLETED
    assert await left(ledger) == []


@pytest.mark.parametrize(
    ("instant", "seconds"),
    [
        ("1970-01-01T00:20:00Z", 200),
        ("1970-01-01T01:20:00+01:00", 200),
        (From("input.at"), 200),
        ("1970-01-01T00:00:01Z", 0),
    ],
)
async def test_a_wait_until_an_instant_ends_then(ledger: Ledger, instant: Any, seconds: int) -> None:
    flow = Workflow("later")
    flow.wait_until(instant, name="pause")
    await ledger.start(flow.definition(), {"at": "1970-01-01T00:20:00Z"})

    if seconds:
        await ledger.pass_time(seconds - 1)
        assert (await ledger.node("pause")).state is TaskState.WAITING
        await ledger.pass_time(1)

    assert await ledger.state() is WorkflowState.COMPLETED


@pytest.mark.parametrize("found", [7, None, "tomorrow", "2026-12-24T08:00:00"])
async def test_an_expression_that_finds_no_instant_fails_its_node(ledger: Ledger, found: Any) -> None:
    flow = Workflow("later")
    flow.wait_until(From("input.at"), name="pause")
    await ledger.start(flow.definition(), {"at": found})

    assert await ledger.state() is WorkflowState.FAILED
    assert (await ledger.node("pause")).reason == "expression"


def gated() -> Workflow:
    flow = Workflow("gated")
    gate = flow.signal("paid", timeout="1h", name="gate")
    flow.task("ship", From("results.gate"), after=[gate], name="ship")
    return flow


async def test_a_signal_completes_the_node_that_waits_for_it_with_its_value(ledger: Ledger) -> None:
    await ledger.start(gated().definition())
    waiting = await ledger.states()

    answer = await signal(ledger, "paid", {"euro": 7}, identity="1")
    (ship,) = ledger.published

    assert waiting["gate"] is TaskState.WAITING
    assert (answer["state"], answer["node"]) == ("taken", "gate")
    assert ship.task.body == b'{"euro":7}'
    assert await left(ledger) == []


async def test_a_signal_that_comes_before_the_node_waits_is_kept_for_it(ledger: Ledger) -> None:
    flow = Workflow("early")
    first = flow.signal("paid", after=[flow.task("work", name="before")], name="first")
    flow.signal("paid", after=[first], name="second")
    await ledger.start(flow.definition())

    kept = [await signal(ledger, "paid", number, identity=str(number)) for number in (1, 2)]
    await ledger.play(lambda _: completed(0))

    assert [answer["state"] for answer in kept] == ["kept", "kept"]
    assert [await value_of(ledger, node) for node in ("first", "second")] == [1, 2]
    assert await ledger.state() is WorkflowState.COMPLETED
    assert await left(ledger) == []


async def test_a_signal_that_is_sent_twice_counts_once(ledger: Ledger) -> None:
    flow = Workflow("twice")
    flow.signal("paid", after=[flow.signal("paid", name="first")], name="second")
    await ledger.start(flow.definition())

    news = [(await signal(ledger, "paid", identity="one"))["new"] for _ in range(2)]

    assert news == [True, False]
    assert await ledger.states() == {"first": TaskState.COMPLETED, "second": TaskState.WAITING}


async def test_a_node_that_no_signal_reaches_fails_in_time_and_can_be_redriven(ledger: Ledger) -> None:
    await ledger.start(gated().definition())
    await ledger.pass_time(3_600)
    late = await ledger.state(), (await ledger.node("gate")).reason, await left(ledger)

    with pytest.raises(InputError, match="no more signals"):
        await signal(ledger, "paid", identity="1")
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await signal(ledger, "paid", {}, identity="1")
    await ledger.play(lambda _: completed())

    assert late == (WorkflowState.FAILED, "signal_timeout", [])
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_a_canceled_workflow_waits_for_nothing(ledger: Ledger) -> None:
    flow = gated()
    flow.wait("1h", name="pause")
    await ledger.start(flow.definition())

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})

    assert set((await ledger.states()).values()) == {TaskState.CANCELED}
    assert await left(ledger) == []


async def test_signals_that_no_node_takes_are_bounded_and_a_refused_one_may_come_again(ledger: Ledger) -> None:
    await ledger.start(gated().definition())
    for number in range(MOST_KEPT):
        await signal(ledger, "other", identity=str(number))

    with pytest.raises(InputError, match="Too many signals"):
        await signal(ledger, "other", identity="more")
    known = await ledger.database.read(lambda tr: tr.get(SIGNALS.pack(("w", "more"))))

    assert known is None


@pytest.mark.parametrize(
    ("wrong", "error"),
    [({"signal": "a b"}, InputError), ({"signal": 7}, InputError), ({"id": ""}, InvalidTask),
     ({"id": "x" * 256}, InvalidTask), ({"workflow": "unknown"}, NotFound)],
)  # fmt: skip
async def test_a_request_that_is_no_signal_is_refused(
    ledger: Ledger, wrong: dict[str, Any], error: type[Exception]
) -> None:
    await ledger.start(gated().definition())

    with pytest.raises(error):
        await ledger.ask(Verb.SIGNAL, {"workflow": "w", "signal": "paid", "id": "1"} | wrong)
