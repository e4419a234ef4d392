"""Nodes that wait for an instant or a signal, in the ledger: the test plays time, and who sends signals."""

from __future__ import annotations

from typing import Any

import pytest

from coditect.errors import InputError, InvalidTask, InvalidWorkflow, NotFound
from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.keyspace import AWAITING, DUE, SIGNALS, SIGNALS_KEPT, TIMERS
from dispatcher.ledger.nodes.waits import MOST_KEPT
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


async def signal(ledger: Ledger, name: str, value: Any = None, *, identity: str, workflow: str = "w") -> Any:
    return await ledger.ask(Verb.SIGNAL, {"workflow": workflow, "signal": name, "value": value, "id": identity})


async def left(ledger: Ledger) -> list[bytes]:
    """What the store still has of waits: timers, nodes that await a signal, and signals that nobody took."""
    ranges = [space.range() for space in (TIMERS, DUE, AWAITING, SIGNALS_KEPT)]
    found = await ledger.database.read(lambda tr: tr.get_ranges(ranges))
    return [key for rows in found for key, _ in rows]


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [
        ("2h", 7_200),
        ("1970-01-01T00:20:00Z", 200),
        ("1970-01-01T01:20:00+01:00", 200),
        (From("input.at"), 200),
        ("1970-01-01T00:00:01Z", 0),
    ],
)
async def test_a_wait_ends_in_time_and_its_dependents_run(ledger: Ledger, wait: Any, seconds: int) -> None:
    flow = Workflow("later")
    pause = flow.wait("2h", name="pause") if wait == "2h" else flow.wait_until(wait, name="pause")
    flow.task("work", after=[pause], name="then")
    await ledger.start(flow, {"at": "1970-01-01T00:20:00Z"})
    if seconds:
        await ledger.pass_time(seconds - 1)
        assert await ledger.states() == {"pause": TaskState.WAITING, "then": TaskState.BLOCKED}
        await ledger.pass_time(1)
    await ledger.play(lambda _: completed(1))

    assert await ledger.state() is WorkflowState.COMPLETED
    assert await left(ledger) == []


@pytest.mark.parametrize("found", [7, None, "tomorrow", "2026-12-24T08:00:00"])
async def test_an_expression_that_finds_no_instant_fails_its_node(ledger: Ledger, found: Any) -> None:
    flow = Workflow("later")
    flow.wait_until(From("input.at"), name="pause")
    await ledger.start(flow, {"at": found})

    assert await ledger.state() is WorkflowState.FAILED
    assert (await ledger.node("pause")).reason == "expression"


def gated() -> Workflow:
    flow = Workflow("gated")
    gate = flow.signal("paid", timeout="1h", name="gate")
    flow.task("ship", From("results.gate"), after=[gate], name="ship")
    return flow


async def test_a_signal_completes_the_node_that_waits_for_it_with_its_value_and_counts_once(ledger: Ledger) -> None:
    flow = gated()
    flow.signal("paid", after=["ship"], name="again")
    await ledger.start(flow)
    waiting = await ledger.states()
    answers = [await signal(ledger, "paid", {"euro": 7}, identity="1") for _ in range(2)]
    (ship,) = ledger.published
    await ledger.play(lambda _: completed())

    assert waiting["gate"] is TaskState.WAITING
    assert (answers[0]["state"], answers[0]["node"]) == ("taken", "gate")
    assert [one["new"] for one in answers] == [True, False]
    assert ship.task.body == b'{"euro":7}'
    assert (await ledger.node("again")).state is TaskState.WAITING


async def test_a_signal_that_comes_before_the_node_waits_is_kept_for_it(ledger: Ledger) -> None:
    flow = Workflow("early")
    first = flow.signal("paid", after=[flow.task("work", name="before")], name="first")
    flow.signal("paid", after=[first], name="second")
    await ledger.start(flow)

    kept = [await signal(ledger, "paid", number, identity=str(number)) for number in (1, 2)]
    await ledger.play(lambda _: completed(0))

    assert [answer["state"] for answer in kept] == ["kept", "kept"]
    assert [await ledger.value(node) for node in ("first", "second")] == [1, 2]
    assert await ledger.state() is WorkflowState.COMPLETED
    assert await left(ledger) == []


async def test_a_node_that_no_signal_reaches_fails_in_time_and_can_be_redriven(ledger: Ledger) -> None:
    await ledger.start(gated())
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
    flow.task("work", name="delayed", delay="1h")
    await ledger.start(flow)

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    await ledger.pass_time(7_200)

    assert set((await ledger.states()).values()) == {TaskState.CANCELED}
    assert (ledger.published, await left(ledger)) == ([], [])


async def test_signals_that_no_node_takes_are_bounded_and_a_refused_one_may_come_again(ledger: Ledger) -> None:
    await ledger.start(gated())
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
async def test_a_wrong_signal_is_refused(ledger: Ledger, wrong: dict[str, Any], error: type[Exception]) -> None:
    await ledger.start(gated())

    with pytest.raises(error):
        await ledger.ask(Verb.SIGNAL, {"workflow": "w", "signal": "paid", "id": "1"} | wrong)


def later(delay: Any, **options: Any) -> Workflow:
    flow = Workflow("later")
    flow.task("work", name="task", delay=delay, **options)
    return flow


@pytest.mark.parametrize("delay", ["200s", 200, "1970-01-01T00:20:00Z", "1970-01-01T01:20:00+01:00"])
async def test_a_task_is_published_when_its_delay_is_over_and_redriven_without_one(ledger: Ledger, delay: Any) -> None:
    await ledger.start(later(delay, retry={"max_attempts": 1}))
    await ledger.pass_time(199)
    waiting, before = await ledger.node("task"), list(ledger.published)
    await ledger.pass_time(1)
    ran = await ledger.play(lambda _: failed())
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "task"})
    ran += await ledger.play(lambda _: completed(1))

    assert (waiting.state, waiting.ready_ms, before) == (TaskState.WAITING, 1_200_000, [])
    assert ran == ["task", "task"]
    assert await ledger.state() is WorkflowState.COMPLETED
    assert await left(ledger) == []


async def test_an_instant_that_has_passed_delays_nothing(ledger: Ledger) -> None:
    await ledger.start_one(delay="1970-01-01T00:00:01Z")

    assert len(ledger.published) == 1


async def test_a_delayed_task_of_a_paused_workflow_has_its_limits_from_then_on(ledger: Ledger) -> None:
    await ledger.start(later("1h", deadline="10s", start_within="5s"))
    await ledger.start(later("1h"), workflow="paused")
    await ledger.ask(Verb.PAUSE, {"workflow": "paused"})
    await ledger.pass_time(3_600)
    (publication,) = ledger.published
    paused = (await ledger.node("task", "paused")).state
    await ledger.ask(Verb.RESUME, {"workflow": "paused"})

    limits = publication.task.limits
    assert (limits.deadline_ms, limits.start_by_ms) == (4_610_000, 4_605_000)
    assert (paused, len(ledger.published)) == (TaskState.READY, 2)


@pytest.mark.parametrize("delay", ["soon", "2026-12-24T08:00:00", "4000d", True, 0])
def test_a_wrong_delay_is_refused_and_so_is_any_of_a_map(delay: Any) -> None:
    with pytest.raises(InputError):
        later(delay)
    with pytest.raises(InputError, match="A map has no delay"):
        Workflow("later").map("work", [1], delay="1h")


async def test_a_map_with_a_delay_is_refused_by_the_ledger(ledger: Ledger) -> None:
    node = {"map": "work", "over": [1], "limit": 1, "delay": "1h"}

    with pytest.raises(InvalidWorkflow, match="There is no field 'delay' here"):
        await ledger.ask(Verb.START, {"workflow": "w", "name": "n", "count": 1, "nodes": {"each": node}})
