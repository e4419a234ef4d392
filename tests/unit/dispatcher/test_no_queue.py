"""Nodes whose capability has no queue: few publishes, growing pauses, and all of them go on when an agent comes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from coditect import Agent, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.capacity import LEAST, PAUSES, Capacity
from dispatcher.ledger import outbox
from dispatcher.ledger.commands import Lost, NoQueue
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.store.memory import MemoryDatabase
from dispatcher.taskgraph.memory import MemoryTaskGraph
from tests.unit.dispatcher.ledger.test_batch import one_node
from tests.unit.dispatcher.lone_ledger import Ledger

NODES = 600
MOST_PROBES = 10
"""In two minutes: after 1, 2, 4, 8, 16 and then 30 s, for each shard that may claim in the same moment."""
ROUNDING = 1e-6
"""What a sum of seconds may lack of them."""


class Counting(MemoryBroker):
    """Counts the nodes that are published."""

    published = 0

    async def publish(self, message: Message, *, exchange: str, routing_key: str, **how: Any) -> None:
        self.published += exchange == routing.SUBMIT
        await super().publish(message, exchange=exchange, routing_key=routing_key, **how)


def gated(**nodes: str) -> Workflow:
    """Nodes with their capabilities, behind a gate."""
    flow = Workflow("gated")
    gate = flow.approval("now?", name="gate")
    for name, capability in nodes.items():
        flow.task(capability, name=name, after=[gate])
    return flow


async def lose(fleet: TestFleet, broker: MemoryBroker, worker: Agent, capability: str) -> None:
    """The only agent dies, its registration lapses, and its queue is deleted."""
    fleet.kill(worker.name)
    await fleet.advance(10)
    await broker.delete_queue(routing.task_queue(capability, Priority.P1))


async def test_capability_without_a_queue_is_probed_by_one_node_and_all_go_on_when_an_agent_comes() -> None:
    worker = Agent("worker", slots=8)
    worker.capability("late.work")(lambda _: None)
    async with TestFleet([worker]) as fleet, MemoryDatabase() as database, Counting(fleet.server, name="own") as broker:
        fleet.kill("dispatcher")
        async with running_dispatcher(
            broker=broker,
            registry=fleet.registry,
            clock=fleet._clock("own"),
            database=database,
            graph=MemoryTaskGraph(),
            options=DispatcherOptions(shards=1, owner="own"),
        ):
            run = await fleet.start(gated(**{f"n{number}": "late.work" for number in range(NODES)}))
            await lose(fleet, broker, worker, "late.work")
            await run.answer("gate", granted=True, by="ada")
            await fleet.advance(120)
            tried = broker.published
            assert LEAST < tried <= LEAST + MOST_PROBES

            await fleet.add(worker)
            began = fleet.elapsed_seconds

            assert await run.wait(timeout="1m") is WorkflowState.COMPLETED
            assert fleet.elapsed_seconds - began < 10
            assert broker.published <= tried + NODES


async def test_other_capabilities_go_on_beside_one_without_a_queue() -> None:
    worker, other = Agent("worker", slots=8), Agent("other", slots=8)
    worker.capability("away")(lambda _: None)
    other.capability("here")(lambda _: None)
    async with TestFleet([worker, other]) as fleet, MemoryBroker(fleet.server, name="hand") as broker:
        here = {f"here{number}": "here" for number in range(100)}
        run = await fleet.start(gated(**here, **{f"away{number}": "away" for number in range(100)}))
        await lose(fleet, broker, worker, "away")
        await run.answer("gate", granted=True, by="ada")
        await fleet.advance(5)

        done = {row.name async for row in run.nodes() if row.state.terminal}

    assert done == {"gate", *here}


@given(st.lists(st.floats(0.01, 5.0), min_size=20, max_size=200))
def test_probes_of_a_paused_capability_are_ever_further_apart(steps: list[float]) -> None:
    now, probes = 0.0, []
    capacity = Capacity(lambda: now)
    capacity.note_no_queue("work")
    for step in steps:
        now += step
        assert capacity.room().get("work", 0) == capacity.room_for("work") <= 1
        if capacity.room_for("work") > 0:
            probes.append(now)
            capacity.begin("work")
            capacity.end("work")
            capacity.note_no_queue("work")

    pauses = [after - before for before, after in pairwise(probes)]
    least = [min(2.0 ** (number + 1), PAUSES.longest) - ROUNDING for number in range(len(pauses))]
    assert all(pause >= shortest for pause, shortest in zip(pauses, least, strict=True))


def test_paused_capability_is_open_again_when_a_queue_took_one_and_probed_when_an_agent_offers_it() -> None:
    now = 0.0
    capacity = Capacity(lambda: now)
    capacity.note_no_queue("work")
    assert capacity.room_for("work") == 0

    capacity.set_slots({"work": 4})
    assert capacity.room_for("work") == 1
    assert capacity.note_queue("work")

    assert capacity.room_for("work") == LEAST
    assert not capacity.note_queue("work")


async def test_late_return_of_an_older_publication_leaves_the_newer_one_alone(ledger: Ledger) -> None:
    await ledger.start(one_node())
    (older,) = ledger.published
    await ledger.batch(Lost(older.node_key, older.number))
    newer = ledger.published[-1]

    await ledger.batch(NoQueue(older.node_key, older.number))

    row, rows = await ledger.node("one"), await ledger.database.read(lambda tr: outbox.waiting(tr, 0))
    assert (row.state, row.publication, row.reason) == (TaskState.PUBLISHED, newer.number, "")
    assert [one.publication for one in rows] == [newer.number]
