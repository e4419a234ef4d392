"""Joins of some predecessors: the rest is canceled, and at the end of all a few may be enough."""

from __future__ import annotations

from typing import Any

import pytest

from coditect import Retry, Workflow
from coditect.errors import InvalidWorkflow
from coditect.wire.control import Verb
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import to_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.states import TaskState, WorkflowState
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, few_steps

ONCE = Retry(max_attempts=1)
CANCELED, COMPLETED, FAILED = TaskState.CANCELED, TaskState.COMPLETED, TaskState.FAILED


def racing(of: int = 3, **options: object) -> Definition:
    flow = Workflow("race")
    runners = [flow.task("run", name=f"r{number}", retry=ONCE) for number in range(of)]
    flow.task("take", name="taken", after=runners, **options)  # type: ignore[arg-type]
    return flow.definition()


def events(ledger: Ledger) -> list[str]:
    kinds = [notice.type for notice in ledger.notices]
    return [kind.removeprefix("coordination.") for kind in kinds if kind.startswith("coordination.")]


def canceled(ledger: Ledger) -> list[str]:
    return [node_key.node for node_key, _ in ledger.cancels]


async def test_the_first_result_cancels_the_rest_only_where_it_is_said(ledger: Ledger) -> None:
    await ledger.start(racing(join="any", rest="cancel"))
    await ledger.complete("r1", "r0")
    late = ledger.seen[-1].late
    await ledger.complete("taken")
    await ledger.start(racing(join="any"), workflow="without")
    await ledger.complete("r1", "taken")

    assert late == 1
    assert await ledger.states() == {"r0": CANCELED, "r1": COMPLETED, "r2": CANCELED, "taken": COMPLETED}
    assert canceled(ledger) == ["r0", "r2"]
    assert await ledger.state() is WorkflowState.COMPLETED
    assert await ledger.state("without") is WorkflowState.RUNNING


async def test_enough_of_several_cancel_the_rest(ledger: Ledger) -> None:
    await ledger.start(racing(5, join=3, rest="cancel", least=1))
    await ledger.complete("r4", "r0", "r2")

    assert canceled(ledger) == ["r1", "r3"]
    assert (await ledger.states())["taken"] is TaskState.PUBLISHED
    await ledger.complete("taken")
    assert events(ledger) == ["sync.created", "sync.ready", "join.created", "merge.completed"]


@pytest.mark.parametrize(
    ("width", "options", "ends", "state"),
    [
        (3, {"join": "any", "rest": "cancel"}, ["r0 failed", "r1 failed", "r2 failed"], FAILED),
        (4, {"join": 3, "least": 2}, ["r0 failed", "r1 failed", "r2", "r3"], TaskState.PUBLISHED),
        (3, {"join": 3, "least": 2}, ["r0 failed", "r1 failed"], FAILED),
    ],
    ids=["all fail a race", "fewer are enough when all have ended", "too few fail at once"],
)
async def test_a_join_is_decided_by_the_last_of_these_ends(
    ledger: Ledger, width: int, options: dict[str, Any], ends: list[str], state: TaskState
) -> None:
    await ledger.start(racing(width, **options))
    for ended in ends:
        assert (await ledger.states())["taken"] is TaskState.BLOCKED
        await ledger.end(ended[:2], failed() if "failed" in ended else completed())

    assert (await ledger.states())["taken"] is state


async def test_a_deadline_gives_what_there_is(ledger: Ledger) -> None:
    flow = Workflow("quorum")
    members = [flow.task("run", name=f"r{number}", deadline="30s") for number in range(3)]
    flow.task("take", name="taken", after=members, join=2, least=1, rest="cancel")
    await ledger.start(flow)
    await ledger.complete("r1")
    await ledger.pass_time(31)

    states = {"r0": FAILED, "r1": COMPLETED, "r2": FAILED, "taken": TaskState.PUBLISHED}
    assert await ledger.states() == states


async def test_a_redriven_member_counts_for_the_join_again(ledger: Ledger) -> None:
    await ledger.start(racing(2, join=2, least=1))
    await ledger.play(lambda _: failed())
    assert (await ledger.states())["taken"] is FAILED
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "r0"})
    await ledger.complete("r0")

    assert (await ledger.states())["taken"] is TaskState.PUBLISHED


async def test_a_map_tells_of_its_split_and_its_merge_and_a_plain_workflow_nothing(ledger: Ledger) -> None:
    flow = Workflow("map")
    flow.map("run", [1, 2], name="all")
    for definition in (racing(), flow.definition()):
        before = events(ledger)
        await ledger.start(definition, workflow=definition.name)
        await ledger.play(lambda publication: completed(publication.node_key.node))

    assert (before, events(ledger)) == ([], ["split.created", "join.created", "merge.completed"])


def test_a_join_is_written_down() -> None:
    definition = racing(join=2, rest="cancel", least=1)
    assert from_document(to_document(definition)) == definition


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(InvalidWorkflow, match="`least` is 3"):
        racing(join=2, least=3)
    with pytest.raises(InvalidWorkflow, match="cancels the rest of 101"):
        racing(101, join="any", rest="cancel")


def map_that_races(elements: int) -> Definition:
    flow = Workflow("race")
    quick = flow.task("run", name="quick", retry=ONCE)
    slow = flow.map("run", over=[*range(elements)], limit=elements, name="slow", retry=ONCE)
    flow.task("take", name="taken", after=[quick, slow], join="any", rest="cancel")
    return flow.definition()


async def test_a_map_that_lost_is_canceled_with_its_elements(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    few_steps(monkeypatch, 10)
    await ledger.start(map_that_races(95))
    await ledger.complete("quick", "taken")

    states = await ledger.states()
    assert {states.pop("quick"), states.pop("taken")} == {COMPLETED}
    assert set(states.values()) == {CANCELED}
    assert len(canceled(ledger)) == 95
    assert max(len(effects.cancels) for effects in ledger.seen) <= 10
    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.run()).todo == 0


async def test_elements_of_a_map_that_is_begun_again_are_left_alone(ledger: Ledger) -> None:
    await ledger.start(map_that_races(2))
    ledger.goes_on = False
    await ledger.complete("quick")
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "slow"})
    ledger.goes_on = True
    await ledger.go_on()
    await ledger.complete("slow[0]", "slow[1]")

    assert canceled(ledger) == []
    assert (await ledger.states())["slow"] is COMPLETED
