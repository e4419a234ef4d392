"""Joins of some predecessors: the rest is canceled, and at the end of all a few may be enough."""

from __future__ import annotations

import pytest

from coditect import Retry, Workflow
from coditect.errors import InvalidWorkflow, NewerVersion
from coditect.wire.control import Verb
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import node_document, to_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import definitions, versions
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, few_steps

ONCE = Retry(max_attempts=1)
CANCELED, COMPLETED, FAILED = TaskState.CANCELED, TaskState.COMPLETED, TaskState.FAILED


def racing(of: int = 3, **options: object) -> Definition:
    flow = Workflow("race")
    runners = [flow.task("run", name=f"r{number}", retry=ONCE) for number in range(of)]
    flow.task("take", name="taken", after=runners, **options)  # type: ignore[arg-type]
    return flow.definition()


async def end(ledger: Ledger, name: str, *, good: bool = True) -> None:
    publication = next(one for one in ledger.published if one.node_key.node == name)
    await ledger.batch(ledger.finished(publication, completed(name) if good else failed()))


def events(ledger: Ledger) -> list[str]:
    kinds = [notice.type for effects in ledger.seen for notice in effects.notices]
    return [kind.removeprefix("coordination.") for kind in kinds if kind.startswith("coordination.")]


def canceled(ledger: Ledger) -> list[str]:
    return [node_key.node for effects in ledger.seen for node_key, _ in effects.cancels]


async def test_the_first_result_cancels_the_rest_and_the_workflow_completes(ledger: Ledger) -> None:
    await ledger.start(racing(join="any", rest="cancel"))
    await end(ledger, "r1")
    await end(ledger, "r0")
    assert ledger.seen[-1].late == 1
    await end(ledger, "taken")

    states = {"r0": CANCELED, "r1": COMPLETED, "r2": CANCELED, "taken": COMPLETED}
    assert await ledger.states() == states
    assert canceled(ledger) == ["r0", "r2"]
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_without_it_the_rest_goes_on(ledger: Ledger) -> None:
    await ledger.start(racing(join="any"))
    await end(ledger, "r1")
    await end(ledger, "taken")

    assert canceled(ledger) == []
    assert await ledger.state() is WorkflowState.RUNNING


async def test_a_failure_does_not_decide_a_race_and_the_failure_of_all_fails_it(ledger: Ledger) -> None:
    await ledger.start(racing(join="any", rest="cancel"))
    for name in ("r0", "r1"):
        await end(ledger, name, good=False)
        assert (await ledger.states())["taken"] is TaskState.BLOCKED
    await end(ledger, "r2", good=False)

    assert (await ledger.states())["taken"] is FAILED
    assert await ledger.state() is WorkflowState.FAILED


async def test_enough_of_several_cancel_the_rest(ledger: Ledger) -> None:
    await ledger.start(racing(5, join=3, rest="cancel", least=1))
    for name in ("r4", "r0", "r2"):
        await end(ledger, name)

    assert canceled(ledger) == ["r1", "r3"]
    assert (await ledger.states())["taken"] is TaskState.PUBLISHED
    assert events(ledger) == ["sync.created", "sync.ready", "join.created"]
    await end(ledger, "taken")
    assert events(ledger)[3:] == ["merge.completed"]


async def test_fewer_are_enough_when_all_have_ended_and_not_before(ledger: Ledger) -> None:
    await ledger.start(racing(4, join=3, least=2))
    await end(ledger, "r0", good=False)
    await end(ledger, "r1", good=False)
    await end(ledger, "r2")
    assert (await ledger.states())["taken"] is TaskState.BLOCKED
    await end(ledger, "r3")

    assert (await ledger.states())["taken"] is TaskState.PUBLISHED


async def test_too_few_fail_it_as_soon_as_that_is_known(ledger: Ledger) -> None:
    await ledger.start(racing(3, join=3, least=2))
    await end(ledger, "r0", good=False)
    assert (await ledger.states())["taken"] is TaskState.BLOCKED
    await end(ledger, "r1", good=False)

    assert (await ledger.states())["taken"] is FAILED


async def test_a_deadline_gives_what_there_is(ledger: Ledger) -> None:
    flow = Workflow("quorum")
    members = [flow.task("run", name=f"r{number}", deadline="30s") for number in range(3)]
    flow.task("take", name="taken", after=members, join=2, least=1, rest="cancel")
    await ledger.start(flow.definition())
    await end(ledger, "r1")
    await ledger.pass_time(31)

    states = {"r0": FAILED, "r1": COMPLETED, "r2": FAILED, "taken": TaskState.PUBLISHED}
    assert await ledger.states() == states


async def test_a_redriven_member_counts_for_the_join_again(ledger: Ledger) -> None:
    await ledger.start(racing(2, join=2, least=1))
    await end(ledger, "r0", good=False)
    await end(ledger, "r1", good=False)
    assert (await ledger.states())["taken"] is FAILED
    ledger.published.clear()
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "r0"})
    await end(ledger, "r0")

    assert (await ledger.states())["taken"] is TaskState.PUBLISHED


async def test_a_map_tells_of_its_split_and_its_merge(ledger: Ledger) -> None:
    flow = Workflow("map")
    flow.map("run", [1, 2], name="all")
    await ledger.start(flow.definition())
    await ledger.play(lambda publication: completed(publication.node_key.node))

    assert events(ledger) == ["split.created", "join.created", "merge.completed"]


async def test_a_plain_workflow_tells_nothing_of_it(ledger: Ledger) -> None:
    await ledger.start(racing())
    await ledger.play(lambda publication: completed(publication.node_key.node))

    assert events(ledger) == []


def test_a_join_is_written_down_and_refused_by_a_dispatcher_that_does_not_know_it() -> None:
    definition = racing(join=2, rest="cancel", least=1)
    assert from_document(to_document(definition)) == definition

    row = definitions.pack(node_document(definition.nodes[-1]))
    earlier = versions.RowFormat("node", versions.NODE.pack, versions.NODE.decode, versions.NODE.steps[:2])
    with pytest.raises(NewerVersion):
        earlier.unpack(row)
    assert definitions.pack(node_document(definition.nodes[0]))[:1] == b"{"


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(InvalidWorkflow, match="`least` is 3"):
        racing(join=2, least=3)
    with pytest.raises(InvalidWorkflow, match="cancels the rest of 101"):
        racing(101, join="any", rest="cancel")


async def test_a_map_that_lost_is_canceled_with_its_elements(ledger: Ledger) -> None:
    flow = Workflow("race")
    quick = flow.task("run", name="quick", retry=ONCE)
    slow = flow.map("run", over=[1, 2, 3], limit=3, name="slow", retry=ONCE)
    flow.task("take", name="taken", after=[quick, slow], join="any", rest="cancel")
    await ledger.start(flow.definition())
    await end(ledger, "quick")
    await end(ledger, "taken")

    states = await ledger.states()
    assert {states.pop("quick"), states.pop("taken")} == {COMPLETED}
    assert set(states.values()) == {CANCELED}
    assert len(canceled(ledger)) == 3
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_a_map_of_many_elements_is_canceled_in_transactions_of_a_few(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_steps(monkeypatch, 10)
    flow = Workflow("race")
    quick = flow.task("run", name="quick", retry=ONCE)
    slow = flow.map("run", over=list(range(95)), limit=95, name="slow", retry=ONCE)
    flow.task("take", name="taken", after=[quick, slow], join="any", rest="cancel")
    await ledger.start(flow.definition())
    await end(ledger, "quick")
    await end(ledger, "taken")

    assert len(canceled(ledger)) == 95
    assert max(len(effects.cancels) for effects in ledger.seen) <= 10
    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.run()).todo == 0


async def test_elements_of_a_map_that_is_begun_again_are_left_alone(ledger: Ledger) -> None:
    flow = Workflow("race")
    quick = flow.task("run", name="quick", retry=ONCE)
    slow = flow.map("run", over=[1, 2], limit=2, name="slow", retry=ONCE)
    flow.task("take", name="taken", after=[quick, slow], join="any", rest="cancel")
    await ledger.start(flow.definition())
    ledger.goes_on = False
    await end(ledger, "quick")
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "slow"})
    ledger.goes_on = True
    await ledger.go_on()
    ledger.published.reverse()  # the latest publication of each first
    for name in ("slow[0]", "slow[1]"):
        await end(ledger, name)

    assert canceled(ledger) == []
    assert (await ledger.states())["slow"] is COMPLETED
