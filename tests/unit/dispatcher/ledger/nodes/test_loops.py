"""Nodes that repeat their task until an expression over the result holds, at most so often."""

from __future__ import annotations

from typing import Any

import pytest

from coditect import Workflow
from coditect.errors import InputError
from coditect.wire.control import Verb
from coditect.workflow.definition import Repeat
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.workflows import queries
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed

UNTIL = {"until": "result.done", "most": 3}


def poll(**more: Any) -> Workflow:
    flow = Workflow("poll")
    polled = flow.task("status", {"of": 7}, name="poll", repeat=UNTIL | more)
    flow.task("report", polled.result, name="report")
    return flow


async def test_task_is_done_again_until_its_result_is_as_wanted(ledger: Ledger) -> None:
    await ledger.start(poll())
    given = iter([completed({"done": False}), completed({"done": True, "n": 2}), completed("told")])

    await ledger.play(lambda _: next(given))

    assert await ledger.state() is WorkflowState.COMPLETED
    assert await ledger.value("poll") == {"done": True, "n": 2}
    told = await ledger.read(queries.attempts, workflow="w", node="poll")
    assert [(one["status"], one["attempt"]) for one in told["attempts"]] == [("completed", 1)] * 2
    assert told["attempts"][0]["fence"] < told["attempts"][1]["fence"]


async def test_task_is_done_at_most_so_often_and_a_redrive_counts_from_the_beginning(ledger: Ledger) -> None:
    await ledger.start(poll())
    ran = [await ledger.play(lambda _: completed({"done": False}))]
    row = await ledger.node("poll")
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "poll"})
    ran.append(await ledger.play(lambda _: completed({"done": False})))
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "poll"})
    ran.append(await ledger.play(lambda _: failed()))

    assert ran == [["poll"] * 3, ["poll"] * 3, ["poll"]]
    assert (row.state, row.reason, (await ledger.node("poll")).reason) == (TaskState.FAILED, "until", "handler_error")


@pytest.mark.parametrize("cancel", [False, True])
async def test_next_iteration_begins_after_the_pause_unless_it_is_canceled(ledger: Ledger, cancel: bool) -> None:
    await ledger.start(poll(every="10s"))
    await ledger.play(lambda _: completed({"done": False}))
    await ledger.pass_time(9)
    early = list(ledger.published)
    if cancel:
        await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    await ledger.pass_time(1)

    assert early == []
    assert [one.node_key.node for one in ledger.published] == ([] if cancel else ["poll"])
    assert await ledger.state() is (WorkflowState.CANCELED if cancel else WorkflowState.RUNNING)


async def test_iteration_told_twice_counts_once(ledger: Ledger) -> None:
    await ledger.start(poll())
    first = ledger.published.pop()

    for _ in range(4):
        await ledger.batch(ledger.finished(first, completed({"done": False})))

    assert len(ledger.published) == 1
    assert (await ledger.node("poll")).state is TaskState.PUBLISHED


def test_loop_is_written_and_read_alike() -> None:
    made = poll(every="10s").definition()

    assert made.nodes[0].call is not None and made.nodes[0].call.repeat == Repeat("result.done", 3, 10_000)
    assert from_document(to_document(made)) == made


@pytest.mark.parametrize(
    ("until", "sentence"),
    [
        ("results.done", "There is no 'results' to see in 'results.done'"),
        ("done(result)", "There is no function done() in 'done(result)'"),
    ],
)
def test_loop_s_expression_sees_the_result_alone_and_calls_what_there_is(until: str, sentence: str) -> None:
    (problem,) = check_expressions(poll(until=until).definition())

    assert problem.sentence == sentence


@pytest.mark.parametrize("wrong", [{"most": 0}, {"until": ""}, {"often": 1}])
def test_wrong_loop_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        poll(**wrong)
