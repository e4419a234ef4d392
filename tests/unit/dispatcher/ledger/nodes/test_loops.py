"""Nodes that repeat their task until an expression over the result holds, at most so often."""

from __future__ import annotations

from typing import Any

import pytest

from coditect import Workflow
from coditect.errors import InputError
from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.workflow.definition import Repeat
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.nodes.inputs import RESULT, value_of
from dispatcher.ledger.workflows import queries
from tests.unit.dispatcher.lone_ledger import Ledger, NodeKey, completed, failed

UNTIL = {"until": "result.done", "most": 3}


def poll(**more: Any) -> Workflow:
    flow = Workflow("poll")
    polled = flow.task("status", {"of": 7}, name="poll", repeat=UNTIL | more)
    flow.task("report", polled.result, name="report")
    return flow


class Unfinished:
    """Agents that are never done, and the nodes that they executed."""

    def __init__(self) -> None:
        self.nodes: list[str] = []

    def __call__(self, publication: Publication) -> Outcome:
        self.nodes.append(publication.node_key.node)
        return completed({"done": False})


async def test_task_is_done_again_until_its_result_is_as_wanted(ledger: Ledger) -> None:
    await ledger.start(poll().definition())
    given = iter([completed({"done": False}), completed({"done": True, "n": 2}), completed("told")])

    await ledger.play(lambda _: next(given))

    assert await ledger.state() is WorkflowState.COMPLETED
    assert await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "poll"), RESULT)) == {"done": True, "n": 2}
    told = await ledger.database.read(lambda tr: queries.attempts(tr, {"workflow": "w", "node": "poll"}))
    assert [(one["status"], one["attempt"]) for one in told["attempts"]] == [("completed", 1)] * 2
    assert told["attempts"][0]["fence"] < told["attempts"][1]["fence"]


async def test_task_is_done_at_most_so_often_and_then_fails(ledger: Ledger) -> None:
    await ledger.start(poll().definition())

    await ledger.play(ran := Unfinished())

    assert ran.nodes == ["poll"] * 3
    assert ((await ledger.node("poll")).state, (await ledger.node("poll")).reason) == (TaskState.FAILED, "until")


async def test_redrive_of_a_loop_that_ended_counts_from_the_beginning(ledger: Ledger) -> None:
    await ledger.start(poll().definition())
    await ledger.play(lambda _: completed({"done": False}))

    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "poll"})
    await ledger.play(ran := Unfinished())

    assert ran.nodes == ["poll"] * 3


async def test_next_iteration_begins_after_the_pause(ledger: Ledger) -> None:
    await ledger.start(poll(every="10s").definition())
    await ledger.play(lambda _: completed({"done": False}))
    await ledger.pass_time(9)
    early = list(ledger.published)

    await ledger.pass_time(1)

    assert early == []
    assert [one.node_key.node for one in ledger.published] == ["poll"]


async def test_iteration_told_twice_counts_once(ledger: Ledger) -> None:
    await ledger.start(poll().definition())
    first = ledger.published.pop()

    for _ in range(4):
        await ledger.batch(ledger.finished(first, completed({"done": False})))

    assert len(ledger.published) == 1
    assert (await ledger.node("poll")).state is TaskState.PUBLISHED


async def test_failed_attempt_is_no_iteration(ledger: Ledger) -> None:
    await ledger.start(poll().definition())

    await ledger.play(lambda _: failed())

    assert ((await ledger.node("poll")).state, (await ledger.node("poll")).reason) == (
        TaskState.FAILED,
        "handler_error",
    )


async def test_canceled_loop_ends(ledger: Ledger) -> None:
    await ledger.start(poll(every="10s").definition())
    await ledger.play(lambda _: completed({"done": False}))

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    await ledger.pass_time(60)

    assert await ledger.state() is WorkflowState.CANCELED
    assert ledger.published == []


def test_loop_is_written_and_read_alike() -> None:
    made = poll(every="10s").definition()

    assert made.nodes[0].call is not None and made.nodes[0].call.repeat == Repeat("result.done", 3, 10_000)
    assert from_document(to_document(made)) == made


def test_loop_s_expression_sees_the_result_alone() -> None:
    (problem,) = check_expressions(poll(until="results.done").definition())

    assert problem.sentence == "There is no 'results' to see in 'results.done'"


@pytest.mark.parametrize("wrong", [{"most": 0}, {"until": ""}, {"often": 1}])
def test_wrong_loop_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        poll(**wrong)
