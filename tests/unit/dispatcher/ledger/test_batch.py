"""The ledger, batch by batch: what is recorded and released, what is read at once, and how a workflow ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaos.simulated_store import SimulatedDatabase, View
from coditect import Workflow
from coditect.errors import InputError, InvalidTask
from coditect.model.result import Outcome, Status
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.workflow.definition import MOST_ELEMENTS, From
from coditect.workflow.graph import graph_of
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import values, versions
from dispatcher.ledger.commands import Asked, Look, Lost, NoQueue, Proposed
from dispatcher.ledger.definitions import Definitions
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.handlers.requests import LEDGER_VERBS, Query
from dispatcher.ledger.keyspace import VALUES
from dispatcher.ledger.nodes.inputs import FAILURE, INPUT, RESULT, body_at
from dispatcher.ledger.unit_of_work import MOST_AHEAD
from dispatcher.ledger.workflows import recover
from dispatcher.ledger.workflows.queries import result
from dispatcher.ledger.workflows.status import status
from tests.unit.dispatcher.ledger.workflows.restored import Played
from tests.unit.dispatcher.lone_ledger import Ledger, SlowStore, completed, failed, one_map, some_graph, tasks, wide
from tests.unit.workflow.model import follow, workflow_end


def diamond() -> Workflow:
    flow = Workflow("diamond")
    top = flow.task("work", {"n": From("input.n")}, name="top")
    left = flow.task("work", {"n": From("results.top")}, name="left", after=[top])
    right = flow.task("work", {"n": 7}, name="right", after=[top])
    flow.task("sum", {"all": From("[results.left, results.right]")}, name="bottom", after=[left, right])
    return flow


async def test_values_flow_along_the_edges_and_the_outbox_empties(ledger: Ledger) -> None:
    inputs, numbers = {}, []

    def act(publication: Publication) -> Outcome:
        numbers.append(publication.number)
        value = inputs[publication.node_key.node] = loads(publication.task.body)
        return completed(value.get("n", 0) + 1)

    await ledger.start(diamond(), {"n": 1})
    waiting = await ledger.unsent()
    ledger.confirmed = ledger.published[-1].number
    await ledger.batch()
    sent = await ledger.unsent()
    await ledger.play(act)

    assert inputs == {"top": {"n": 1}, "left": {"n": 2}, "right": {"n": 7}, "bottom": {"all": [3, 8]}}
    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.run()).counts == {"completed": 4}
    assert len(set(numbers)) == 4
    assert (len(waiting), sent, await ledger.unsent()) == (1, {}, {})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
async def test_any_graph_ends_as_the_model_says(seed: int) -> None:
    random = Random(seed)
    definition = some_graph(random, (1, 14))
    graph = graph_of(definition)
    fate = {name: random.choice([Status.COMPLETED, Status.COMPLETED, *Status]) for name in graph.order}
    ends = {Status.COMPLETED: TaskState.COMPLETED, Status.FAILED: TaskState.FAILED}
    ends |= {Status.CANCELED: TaskState.CANCELED, Status.REJECTED: TaskState.REJECTED}

    def act(publication: Publication) -> Outcome:
        status = fate[publication.node_key.node]
        return completed() if status is Status.COMPLETED else failed(status=status)

    async with SimulatedDatabase() as database:
        ledger = await Ledger.open(database)
        await ledger.start(definition, chunk=random.randint(1, 5))
        order = await ledger.play(act, pick=lambda waiting: random.randrange(len(waiting)))
        states, run = await ledger.states(), await ledger.run()

    model = dict.fromkeys(graph.order, TaskState.BLOCKED)
    follow(graph, model)
    for name in order:
        assert model[name] is TaskState.READY
        model[name] = ends[fate[name]]
        follow(graph, model)
    assert all(state.terminal for state in model.values())
    assert all(state.terminal for state in states.values())
    assert max(Counter(order).values()) == 1
    assert run.state is workflow_end(graph, states)
    assert run.counts == Counter(state.value for state in states.values())


async def test_publication_that_came_back_waits_and_is_published_again(ledger: Ledger) -> None:
    publication = await ledger.start_one()
    await ledger.batch(NoQueue(publication.node_key, publication.number))
    waiting = await ledger.node("one")
    unsent = await ledger.unsent()
    await ledger.pass_time(2)

    assert (waiting.state, waiting.reason, unsent) == (TaskState.RETRY_WAIT, "no_queue", {})
    assert ledger.published[-1].number > publication.number
    assert (await ledger.node("one")).attempt == 1


async def test_without_room_nodes_wait_by_priority_and_are_filled_in(ledger: Ledger) -> None:
    ledger.room = {"": 1}
    flow = Workflow("wide")
    for number in range(6):
        flow.task("work", priority=f"p{number % 3}", name=f"n{number}")
    await ledger.start(flow)
    begun = [publication.node_key.node for publication in ledger.published]

    await ledger.fill("work", 3)

    assert begun == ["n0"]
    assert [publication.node_key.node for publication in ledger.published[1:]] == ["n3", "n1", "n4"]
    assert Counter((await ledger.states()).values()) == {TaskState.PUBLISHED: 4, TaskState.READY: 2}


async def test_map_becomes_its_elements_and_their_values_a_list(ledger: Ledger) -> None:
    flow = Workflow("map")
    doubled = flow.map("double", "input", {"n": From("item")}, limit=3, name="doubled")
    flow.task("sum", {"all": From("results.doubled")}, after=[doubled], name="sum", when="length(input) > `0`")

    def act(publication: Publication) -> Outcome:
        value = loads(publication.task.body)
        return completed(value["n"] * 2 if "n" in value else value)

    for workflow, items in {"w": [3, 1, 2], "empty": [], "long": [1, 2, 3, 4]}.items():
        await ledger.start(flow, items, workflow=workflow)
    await ledger.play(act)

    assert set(await ledger.states()) == {"doubled", "doubled[0]", "doubled[1]", "doubled[2]", "sum"}
    assert await ledger.value("sum") == {"all": [6, 2, 4]}
    assert await ledger.states("empty") == {"doubled": TaskState.COMPLETED, "sum": TaskState.SKIPPED}
    assert (await ledger.node("doubled", "long")).reason == "expression"
    ends = [await ledger.state(workflow) for workflow in ("w", "empty", "long")]
    assert ends == [WorkflowState.COMPLETED, WorkflowState.COMPLETED, WorkflowState.FAILED]


async def test_approval_is_granted_denied_or_times_out_once(ledger: Ledger) -> None:
    flow = Workflow("gate")
    gate = flow.approval("ship it?", timeout="1h", name="gate")
    flow.task("ship", after=[gate], name="ship")
    for workflow in ("granted", "denied", "late"):
        await ledger.start(flow, workflow=workflow)

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


async def test_what_is_claimed_twice_or_canceled_in_a_batch_is_published_once(ledger: Ledger) -> None:
    body = {"name": "one", "count": 1, "nodes": {"one": {"task": "work"}}}
    kept, gone = ({"workflow": workflow} for workflow in ("kept", "gone"))
    await ledger.batch(Asked(Verb.START, body | gone), Asked(Verb.START, body | kept), Asked(Verb.CANCEL, gone))
    (first,) = ledger.published
    unsent = await ledger.unsent()
    await ledger.batch(Lost(first.node_key, first.number), Lost(first.node_key, first.number + 1))

    assert unsent == {first.number: NodeKey("kept", "one")}
    assert await ledger.state("gone") is WorkflowState.CANCELED
    assert [one.number for one in ledger.published] == [first.number, first.number + 2]
    assert await ledger.unsent() == {first.number + 2: first.node_key}


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
    played = Played()
    await ledger.play(played)

    assert before["bottom"] is TaskState.FAILED
    assert plan["again"] == ["bottom", "left"]
    assert untouched == before
    assert played.inputs == {"left": {"n": 40}, "bottom": {"all": ["left", 1]}}
    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.node("left")).fence > fence


async def test_known_key_gives_the_earlier_workflow(ledger: Ledger) -> None:
    body = {"name": "one", "key": "k", "count": 1, "nodes": {"one": {"task": "work"}}}

    answers = [await ledger.ask(Verb.START, body | {"workflow": workflow}) for workflow in ("w1", "w1", "w2")]

    assert [(told["workflow"], told["new"]) for told in answers] == [("w1", True), ("w1", True), ("w1", False)]
    assert len(ledger.published) == 1


def fans(sources: int, dependents: int) -> Workflow:
    """Each source has so many dependents of its own, and all of them come before one node."""
    after = {f"d{source:03}_{number:03}": f"s{source:03}" for source in range(sources) for number in range(dependents)}
    return tasks(**dict.fromkeys(after.values(), ""), **after, end=" ".join(after))


async def all_at_once(ledger: Ledger) -> None:
    """Everything that is published ends in one batch."""
    published, ledger.published = ledger.published, []
    await ledger.batch(*(ledger.finished(publication, completed()) for publication in published))


@pytest.mark.parametrize("dependents", [1, MOST_AHEAD, MOST_AHEAD + 1, 3 * MOST_AHEAD])
async def test_a_batch_of_ends_releases_every_dependent(ledger: Ledger, dependents: int) -> None:
    await ledger.start(fans(3, dependents))

    await all_at_once(ledger)
    released = Counter(publication.node_key.node.partition("_")[0] for publication in ledger.published)
    await all_at_once(ledger)
    (end,) = ledger.published
    await all_at_once(ledger)

    assert released == {"d000": dependents, "d001": dependents, "d002": dependents}
    assert end.node_key.node == "end"
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_more_commands_take_no_more_reads(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger.database.disk, "the reads of the simulated store are counted"
    single: Counter[str] = Counter()
    get, get_range = View.get, View.get_range

    def counted_get(view: View, key: bytes, snapshot: bool) -> bytes | None:
        single["get"] += 1
        return get(view, key, snapshot)

    def counted_range(view: View, *args: object) -> object:
        single["range"] += 1
        return get_range(view, *args)  # type: ignore[arg-type]

    async def reads(sources: int, workflow: str) -> Counter[str]:
        await ledger.start(fans(sources, 1), workflow=workflow)
        with monkeypatch.context() as patched:
            patched.setattr(View, "get", counted_get)
            patched.setattr(View, "get_range", counted_range)
            patched.setattr(View, "get_many", lambda view, keys, snapshot: [get(view, key, snapshot) for key in keys])
            patched.setattr(
                View,
                "get_ranges",
                lambda view, ranges, limit, snapshot: [
                    get_range(view, begin, end, limit, False, snapshot) for begin, end in ranges
                ],
            )
            await all_at_once(ledger)
        ledger.published.clear()
        return Counter(single)

    few = await reads(2, "few")
    single.clear()

    assert await reads(60, "many") == few
    assert few["get"]


@pytest.mark.parametrize(("expressions", "remembers", "waves"), [(False, True, 1), (True, True, 1), (False, False, 3)])
async def test_an_end_that_releases_one_node_takes_one_round_trip_when_that_node_is_remembered(
    monkeypatch: pytest.MonkeyPatch, expressions: bool, remembers: bool, waves: int
) -> None:
    delays: list[float] = []
    async with SlowStore((0.001, 0.001)) as database:
        ledger = await Ledger.open(database)
        flow = Workflow("chain")
        last = flow.task("work", name="n0")
        for number in (1, 2):
            inputs = {"before": From(f"results.n{number - 1}")} if expressions else {}
            last = flow.task("work", inputs, name=f"n{number}", after=[last])
        await ledger.start(flow)
        if not remembers:
            ledger.definitions = Definitions()
        monkeypatch.setattr(database, "_sleep", _noted(delays))

        await all_at_once(ledger)

    assert [publication.node_key.node for publication in ledger.published] == ["n1"]
    assert sum(delays) == pytest.approx(0.001 * waves)


def _noted(delays: list[float]) -> Callable[[float], Awaitable[None]]:
    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    return sleep


async def test_what_is_made_in_the_turn_is_found_though_it_was_not_there_before(ledger: Ledger) -> None:
    start = {"workflow": "w", "name": "one", "count": 1, "nodes": {"only": {"task": "work"}}}
    node_keys = (NodeKey("w", "only"), NodeKey("w", "none"))

    early, _, seen = await ledger.batch(Proposed(node_keys), Asked(Verb.START, start), Look(node_keys))

    assert early == 0
    assert [shown.node_key for shown in seen] == [NodeKey("w", "only")]
    await all_at_once(ledger)
    assert await ledger.state() is WorkflowState.COMPLETED


SLOW_SECONDS = (0.002, 0.002)
TOGETHER = 256
THOUSANDS = 3_000
"""Read one after the other they take longer than a transaction may."""


@pytest.fixture
async def slow_ledger() -> AsyncIterator[Ledger]:
    async with SlowStore(SLOW_SECONDS) as database:
        yield await Ledger.open(database)


async def finish_all(slow_ledger: Ledger) -> None:
    """Every node that is published completes with its own name, as many in a transaction as a shard's worker takes."""
    while slow_ledger.published:
        page, slow_ledger.published = slow_ledger.published[:TOGETHER], slow_ledger.published[TOGETHER:]
        await slow_ledger.batch(*[slow_ledger.finished(one, completed(one.node_key.node)) for one in page])


@pytest.mark.proof
async def test_a_map_of_the_most_elements_ends(slow_ledger: Ledger) -> None:
    await slow_ledger.start(one_map(MOST_ELEMENTS), [*range(MOST_ELEMENTS)])

    await finish_all(slow_ledger)

    assert await slow_ledger.state() is WorkflowState.COMPLETED
    told = await slow_ledger.value("each")
    assert told == [f"each[{number}]" for number in range(MOST_ELEMENTS)]


async def test_a_join_over_thousands_sees_their_values(slow_ledger: Ledger) -> None:
    flow = wide(THOUSANDS)
    after = [f"n{number}" for number in range(THOUSANDS)]
    flow.task("sum", {"n": From("length(values(results))")}, name="sum", after=after)
    await slow_ledger.start(flow)

    await finish_all(slow_ledger)

    assert await slow_ledger.state() is WorkflowState.COMPLETED
    given = await slow_ledger.database.read(lambda tr: body_at(tr, NodeKey("w", "sum"), INPUT))
    assert given is not None
    assert loads(given) == {"n": THOUSANDS}


async def test_what_is_under_way_is_learnt_by_the_next_owner(slow_ledger: Ledger) -> None:
    await slow_ledger.start(one_map(THOUSANDS), [*range(THOUSANDS)])

    found = await recover.learn(slow_ledger.database, 0)

    assert len(found.active.in_flight) == THOUSANDS


async def test_whatever_is_asked_for_is_told_by_the_page(slow_ledger: Ledger) -> None:
    limit = 1_000
    await slow_ledger.start(wide(2 * limit))
    await finish_all(slow_ledger)
    for number in range(limit):
        await slow_ledger.start(one_map(1), [], workflow=f"other-{number}")

    body = {"workflow": "w", "limit": limit, "checkpoint": "n0", "node": "n0"}
    for verb, query in LEDGER_VERBS.items():
        if isinstance(query, Query):
            assert await slow_ledger.database.read(lambda tr, query=query: query.read(tr, body)), verb  # type: ignore[misc]
    assert await slow_ledger.database.read(status)
    assert await slow_ledger.read(result, workflow="w")
    assert slow_ledger.database.repeated == 0


@pytest.mark.parametrize(("kind", "at"), [(RESULT, "each[7]"), (INPUT, "each[7]"), (INPUT, "each")])
async def test_a_damaged_value_of_a_map_fails_it_and_says_so(slow_ledger: Ledger, kind: str, at: str) -> None:
    slow_ledger.room = {"work": 0}
    slow_ledger.goes_on = at != "each"
    await slow_ledger.start(one_map(20), [*range(20)])
    if kind == RESULT:
        await slow_ledger.fill("work", 19)
        await finish_all(slow_ledger)
        await slow_ledger.database.run(lambda tr: values.put(tr, values.ValueKey("w", at, kind), b"7"))
    key = VALUES.pack(("w", at, kind))
    await slow_ledger.database.run(lambda tr: tr.set(key, versions.VALUE.pack((1, b"\0" * 32, b"x"))))
    slow_ledger.goes_on = True
    await slow_ledger.go_on()
    await slow_ledger.fill("work", 20)
    if kind == RESULT:
        await slow_ledger.play(lambda _: completed(1), limit=1)
    await finish_all(slow_ledger)

    assert await slow_ledger.state() is WorkflowState.FAILED
    failed = at if kind == INPUT else "each"
    told = await slow_ledger.value(failed, FAILURE)
    assert (told["reason"], told["type"]) == ("damaged_value", "DamagedValue")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0.0, 0.4))
async def test_however_slow_reads_are_each_batch_does_what_fits(widths: list[int], seconds: float) -> None:
    flow = Workflow("fans")
    for number, width in enumerate(widths):
        first = flow.task("work", name=f"a{number}")
        for one in range(width):
            flow.task("work", {"s": From(f"states.a{number}")}, name=f"b{number}_{one}", after=[first])
    async with SlowStore((seconds, seconds)) as database:
        slow_ledger = await Ledger.open(database)
        await slow_ledger.start(flow)
        await finish_all(slow_ledger)

        assert await slow_ledger.state() is WorkflowState.COMPLETED
        assert Counter((await slow_ledger.states()).values()) == {TaskState.COMPLETED: len(widths) + sum(widths)}
        assert database.repeated == 0


async def test_what_follows_is_left_to_others_where_one_transaction_was_too_small(slow_ledger: Ledger) -> None:
    await slow_ledger.start(one_map(3), [1, 2, 3])
    slow_ledger.defer_dependents, slow_ledger.goes_on = True, False

    await slow_ledger.batch(*[slow_ledger.finished(one, completed(1)) for one in slow_ledger.published])
    recorded = (await slow_ledger.states())["each"]
    slow_ledger.defer_dependents, slow_ledger.goes_on = False, True
    await slow_ledger.go_on()

    assert recorded is TaskState.WORKING
    assert await slow_ledger.state() is WorkflowState.COMPLETED
    assert replace(await slow_ledger.run(), lasts={}).todo == 0
