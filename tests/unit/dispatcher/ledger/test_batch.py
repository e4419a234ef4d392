"""The ledger, batch by batch: what is claimed, recorded, released, and how a workflow ends."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Retry, Workflow
from coditect.errors import InputError, InvalidTask, NotFound
from coditect.model.result import Outcome, Status
from coditect.wire.claims import Claim, Verdict
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.workflow.definition import After, Call, Definition, Node, OnFailure
from coditect.workflow.graph import graph_of
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import outbox, timers
from dispatcher.ledger.commands import Asked, Claimed, Due, Lost, NoQueue
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.nodes.inputs import RESULT, value_of
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed
from tests.unit.workflow.model import follow, workflow_end


def diamond() -> Definition:
    flow = Workflow("diamond")
    top = flow.task("work", {"n": From("input.n")}, name="top")
    left = flow.task("work", {"n": From("results.top")}, name="left", after=[top])
    right = flow.task("work", {"n": 7}, name="right", after=[top])
    flow.task("sum", {"all": From("[results.left, results.right]")}, name="bottom", after=[left, right])
    return flow.definition()


async def test_values_flow_along_the_edges(ledger: Ledger) -> None:
    inputs = {}

    def act(publication: Publication) -> Outcome:
        value = inputs[publication.node_key.node] = loads(publication.task.body)
        return completed(value.get("n", 0) + 1)

    await ledger.start(diamond(), {"n": 1})
    await ledger.play(act)

    assert inputs == {"top": {"n": 1}, "left": {"n": 2}, "right": {"n": 7}, "bottom": {"all": [3, 8]}}
    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.run()).counts == {"completed": 4}


async def test_publication_numbers_and_fences_grow_and_the_outbox_empties(ledger: Ledger) -> None:
    await ledger.start(diamond(), {"n": 1})
    assert len(await ledger.database.read(lambda tr: outbox.waiting(tr, 0))) == 1

    seen = []
    await ledger.play(lambda publication: seen.append(publication) or completed(1))  # type: ignore[func-returns-value]
    await ledger.batch()

    numbers = [publication.number for publication in seen]
    assert sorted(set(numbers)) == sorted(numbers)
    assert await ledger.database.read(lambda tr: outbox.waiting(tr, 0)) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
async def test_any_graph_ends_as_the_model_says(seed: int) -> None:
    random = Random(seed)
    nodes = []
    for number in range(random.randint(1, 14)):
        after = tuple(
            After(f"n{before}", random.choice(list(OnFailure)))
            for before in random.sample(range(number), random.randint(0, min(number, 4)))
        )
        join = random.choice(["all", "any", random.randint(1, len(after))]) if after else "all"
        nodes.append(Node(f"n{number}", Call("work", retry=Retry(max_attempts=1)), after, join))  # type: ignore[arg-type]
    definition = Definition("random", tuple(nodes))
    graph = graph_of(definition)
    fate = {node.name: random.choice([Status.COMPLETED, Status.COMPLETED, *Status]) for node in nodes}
    ends = {Status.COMPLETED: TaskState.COMPLETED, Status.FAILED: TaskState.FAILED}
    ends |= {Status.CANCELED: TaskState.CANCELED, Status.REJECTED: TaskState.REJECTED}
    runs: Counter[str] = Counter()
    order: list[str] = []

    def act(publication: Publication) -> Outcome:
        runs[publication.node_key.node] += 1
        order.append(publication.node_key.node)
        status = fate[publication.node_key.node]
        return completed() if status is Status.COMPLETED else failed(status=status)

    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(definition, chunk=random.randint(1, 5))
        await ledger.play(act, pick=lambda waiting: random.randrange(len(waiting)))
        states, run = await ledger.states(), await ledger.run()

    model = dict.fromkeys(graph.order, TaskState.BLOCKED)
    follow(graph, model)
    for name in order:
        assert model[name] is TaskState.READY
        model[name] = ends[fate[name]]
        follow(graph, model)
    assert all(state.terminal for state in model.values())
    assert all(state.terminal for state in states.values())
    assert max(runs.values()) == 1
    assert run.state is workflow_end(graph, states)
    assert run.counts == Counter(state.value for state in states.values())


async def test_late_result_of_an_older_fence_is_refused_and_counted(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (first,) = ledger.published
    claim = await claim_of(ledger, first)

    await ledger.batch(ledger.finished(first, completed("old")))

    assert claim.verdict is Verdict.RUN
    assert ledger.seen[-1].late == 1
    assert await ledger.state() is WorkflowState.RUNNING


async def test_result_that_comes_again_changes_nothing(ledger: Ledger) -> None:
    await ledger.start(diamond(), {"n": 1})
    (top,) = ledger.published
    ledger.published.clear()

    await ledger.batch(ledger.finished(top, completed(1)))
    await ledger.batch(ledger.finished(top, completed(1)))

    assert len(ledger.published) == 2
    assert ledger.seen[-1].late == 0


def one_node(**options: object) -> Definition:
    flow = Workflow("one")
    flow.task("work", name="one", **options)  # type: ignore[arg-type]
    return flow.definition()


async def claim_of(ledger: Ledger, publication: Publication, agent: str = "other-2") -> Claim:
    (claim,) = await ledger.batch(Claimed(publication.node_key, publication.number, agent))
    assert isinstance(claim, Claim)
    return claim


async def test_failed_attempt_is_retried_after_its_delay_then_the_node_fails(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=2, first="2s")))
    await ledger.play(lambda _: failed(retryable=True))
    waiting = await ledger.states()
    await ledger.pass_time(10)
    await ledger.play(lambda _: failed(retryable=True))

    assert waiting == {"one": TaskState.RETRY_WAIT}
    assert await ledger.states() == {"one": TaskState.FAILED}
    assert await ledger.state() is WorkflowState.FAILED
    assert (await ledger.node("one")).attempt == 2


async def test_publication_that_came_back_waits_and_is_published_again(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (publication,) = ledger.published
    await ledger.batch(NoQueue(publication.node_key, publication.number))
    waiting = await ledger.node("one")
    rows = await ledger.database.read(lambda tr: outbox.waiting(tr, 0))
    await ledger.pass_time(2)

    assert (waiting.state, waiting.reason, rows) == (TaskState.RETRY_WAIT, "no_queue", [])
    assert ledger.published[-1].number > publication.number
    assert (await ledger.node("one")).attempt == 1


async def test_without_room_nodes_wait_by_priority_and_are_filled_in(ledger: Ledger) -> None:
    ledger.room = {"": 1}
    flow = Workflow("wide")
    for number in range(6):
        flow.task("work", priority=f"p{number % 3}", name=f"n{number}")
    await ledger.start(flow.definition())
    begun = [publication.node_key.node for publication in ledger.published]

    await ledger.fill("work", 3)

    assert begun == ["n0"]
    assert [publication.node_key.node for publication in ledger.published[1:]] == ["n3", "n1", "n4"]
    assert Counter((await ledger.states()).values()) == {TaskState.PUBLISHED: 4, TaskState.READY: 2}


async def test_large_fan_out_is_released_in_several_transactions(ledger: Ledger) -> None:
    flow = Workflow("fan")
    top = flow.task("work", name="top")
    middle = [flow.task("work", after=[top], name=f"m{number}") for number in range(2_500)]
    flow.task("work", after=middle, name="bottom")
    await ledger.start(flow.definition())

    await ledger.play(lambda _: completed(1))

    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.run()).counts == {"completed": 2_502}


async def test_map_becomes_its_elements_and_their_values_a_list(ledger: Ledger) -> None:
    flow = Workflow("map")
    doubled = flow.map("double", "input", {"n": From("item")}, limit=10, name="doubled")
    flow.task("sum", {"all": From("results.doubled")}, after=[doubled], name="sum")
    await ledger.start(flow.definition(), [3, 1, 2])

    def act(publication: Publication) -> Outcome:
        value = loads(publication.task.body)
        return completed(value["n"] * 2 if "n" in value else value)

    await ledger.play(act)

    assert await ledger.state() is WorkflowState.COMPLETED
    assert set(await ledger.states()) == {"doubled", "doubled[0]", "doubled[1]", "doubled[2]", "sum"}
    result = await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "sum"), RESULT))
    assert result == {"all": [6, 2, 4]}


async def test_empty_map_completes_at_once_and_a_long_one_fails(ledger: Ledger) -> None:
    flow = Workflow("map")
    flow.map("double", "input", limit=2, name="doubled")
    await ledger.start(flow.definition(), [], workflow="empty")
    await ledger.start(flow.definition(), [1, 2, 3], workflow="long")

    assert await ledger.state("empty") is WorkflowState.COMPLETED
    assert await ledger.state("long") is WorkflowState.FAILED
    assert (await ledger.node("doubled", "long")).reason == "expression"


async def test_condition_that_does_not_hold_skips(ledger: Ledger) -> None:
    flow = Workflow("when")
    flow.task("work", when="input.wanted", name="maybe")
    await ledger.start(flow.definition(), {"wanted": False})

    assert await ledger.states() == {"maybe": TaskState.SKIPPED}
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_approval_is_granted_denied_or_times_out_once(ledger: Ledger) -> None:
    flow = Workflow("gate")
    gate = flow.approval("ship it?", timeout="1h", name="gate")
    flow.task("ship", after=[gate], name="ship")
    for workflow in ("granted", "denied", "late"):
        await ledger.start(flow.definition(), workflow=workflow)

    for nobody in ({}, {"by": ""}, {"by": 7}):
        with pytest.raises(InvalidTask):
            await ledger.ask(Verb.ANSWER, {"workflow": "granted", "node": "gate", "granted": True, **nobody})
    await ledger.ask(Verb.ANSWER, {"workflow": "granted", "node": "gate", "granted": True, "by": "ada"})
    await ledger.ask(Verb.ANSWER, {"workflow": "denied", "node": "gate", "granted": False, "by": "bob"})
    with pytest.raises(InputError, match="This node asks for no approval"):
        await ledger.ask(Verb.ANSWER, {"workflow": "denied", "node": "gate", "granted": True, "by": "ada"})
    await ledger.pass_time(3_601)
    await ledger.play(lambda _: completed())

    assert await ledger.state("granted") is WorkflowState.COMPLETED
    assert await ledger.state("denied") is WorkflowState.REJECTED
    assert await ledger.state("late") is WorkflowState.REJECTED
    answered = [(await ledger.node("gate", workflow)).agent for workflow in ("granted", "denied", "late")]
    assert answered == ["ada", "bob", "timeout"]


async def test_cancel_ends_everything_and_tells_the_agents(ledger: Ledger) -> None:
    await ledger.start(diamond(), {"n": 1})
    (top,) = ledger.published

    await ledger.ask(Verb.CANCEL, {"workflow": "w", "reason": "enough"})
    told = ledger.seen[-1].cancels
    await ledger.batch(ledger.finished(top, completed(1)))

    assert told == [(top.node_key, top.number)]
    assert set((await ledger.states()).values()) == {TaskState.CANCELED}
    assert await ledger.state() is WorkflowState.CANCELED
    assert ledger.seen[-1].late == 1


async def test_what_is_claimed_and_canceled_in_one_batch_is_not_published(ledger: Ledger) -> None:
    body = {"name": "one", "count": 1, "nodes": {"one": {"task": "work"}}}
    kept, gone = ({"workflow": workflow} for workflow in ("kept", "gone"))

    await ledger.batch(Asked(Verb.START, body | gone), Asked(Verb.START, body | kept), Asked(Verb.CANCEL, gone))
    rows = await ledger.database.read(lambda tr: outbox.waiting(tr, 0))

    assert [one.node_key.workflow for one in ledger.published] == ["kept"]
    assert [row.workflow for row in rows] == ["kept"]
    assert await ledger.state("gone") is WorkflowState.CANCELED


async def test_what_is_claimed_twice_in_one_batch_is_published_as_the_last(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (first,) = ledger.published

    await ledger.batch(Lost(first.node_key, first.number), Lost(first.node_key, first.number + 1))
    rows = await ledger.database.read(lambda tr: outbox.waiting(tr, 0, after=first.number))

    assert [one.number for one in ledger.published] == [first.number, first.number + 2]
    assert [row.publication for row in rows] == [first.number + 2]


async def test_paused_workflow_publishes_nothing_until_it_is_resumed(ledger: Ledger) -> None:
    await ledger.start(diamond(), {"n": 1})
    await ledger.ask(Verb.PAUSE, {"workflow": "w"})
    await ledger.play(lambda _: completed(1))
    paused = await ledger.states()
    await ledger.fill("work", 10)

    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(lambda _: completed(1))

    assert paused["left"] is TaskState.READY
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_failed_node_is_redriven_and_its_dependents_go_on(ledger: Ledger) -> None:
    await ledger.start(diamond(), {"n": 1})
    await ledger.play(lambda one: failed() if one.node_key.node == "left" else completed(1))
    before = await ledger.states()
    fence = (await ledger.node("left")).fence

    plan = await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "left", "dry_run": True})
    untouched = await ledger.states()
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "left", "input": {"n": 40}})
    inputs = {}

    def act(publication: Publication) -> Outcome:
        inputs[publication.node_key.node] = loads(publication.task.body)
        return completed(2)

    await ledger.play(act)

    assert before["bottom"] is TaskState.FAILED
    assert plan["again"] == ["bottom", "left"]
    assert untouched == before
    assert inputs == {"left": {"n": 40}, "bottom": {"all": [2, 1]}}
    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.node("left")).fence > fence


async def test_failed_workflow_is_resumed_from_its_first_failed_nodes(ledger: Ledger) -> None:
    flow = Workflow("two")
    first = [flow.task("work", name=name) for name in ("a", "b")]
    flow.task("work", after=first, name="c")
    await ledger.start(flow.definition())
    await ledger.play(lambda _: failed())

    answer = await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(lambda _: completed())

    assert answer["again"] == ["a", "b", "c"]
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_elements_that_failed_run_again_with_their_map(ledger: Ledger) -> None:
    flow = Workflow("map")
    flow.map("work", "input", {"n": From("item")}, limit=10, name="each")
    await ledger.start(flow.definition(), [1, 2, 3])
    await ledger.play(lambda one: failed() if one.node_key.node == "each[1]" else completed(1))
    ran: list[str] = []

    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "each"})
    await ledger.play(lambda one: ran.append(one.node_key.node) or completed(2))  # type: ignore[func-returns-value]

    assert ran == ["each[1]"]
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_unknown_workflow_and_node_are_refused(ledger: Ledger) -> None:
    with pytest.raises(NotFound):
        await ledger.ask(Verb.CANCEL, {"workflow": "nobody"})


async def test_timer_that_was_replaced_does_nothing(ledger: Ledger) -> None:
    await ledger.start(one_node(retry=Retry(max_attempts=3, first="2s")))
    await ledger.play(lambda _: failed(retryable=True))
    (timer,) = await ledger.database.read(lambda tr: timers.due(tr, 0, ledger.now_ms + 60_000))
    ledger.now_ms += 60_000

    await ledger.batch(Due(timer))
    await ledger.batch(Due(timer))

    assert len(ledger.published) == 1


async def test_known_key_gives_the_earlier_workflow(ledger: Ledger) -> None:
    node = {"one": {"task": "work"}}
    body = {"name": "one", "key": "k", "count": 1, "nodes": node}

    first = await ledger.ask(Verb.START, body | {"workflow": "w1"})
    again = await ledger.ask(Verb.START, body | {"workflow": "w1"})
    other = await ledger.ask(Verb.START, body | {"workflow": "w2"})

    assert (first["workflow"], first["new"], again["new"]) == ("w1", True, True)
    assert (other["workflow"], other["new"]) == ("w1", False)
    assert len(ledger.published) == 1
