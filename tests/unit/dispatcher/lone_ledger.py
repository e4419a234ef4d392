"""A shard's ledger in memory, driven batch by batch: the test plays broker, agents and time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import thread_time
from typing import Any

import pytest

from coditect.model.ids import AgentId
from coditect.model.result import Failure, Outcome, Status
from coditect.wire.control import Verb
from coditect.wire.json import dumps
from coditect.wire.workflow_tasks import Claim
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import child_document, head_document, node_document
from coditect.workflow.graph import children_of, graph_of
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Asked, Claimed, Command, Continue, Due, Evaluated, Fill, Finished
from dispatcher.ledger.definitions import Caches, Definitions
from dispatcher.ledger.effects import Effects, NodeKey, Publication
from dispatcher.ledger.keyspace import RUNS, STATUSES
from dispatcher.ledger.nodes import advance
from dispatcher.ledger.nodes.inputs import RESULT, value_of
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.ownership.leases import Lease
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.ledger.workflows import continuations, redrive_steps
from dispatcher.shards import batch
from dispatcher.shards.continuations import evaluate
from dispatcher.store.memory import Faults, MemoryDatabase

AGENT = AgentId("worker-1")
READ_SECONDS = (0.0005, 0.002)
"""Of a cluster that is not near; nobody waits for it here, but transactions age by it."""


class SlowStore(MemoryDatabase):
    """Each read takes as long as a cluster's."""

    def __init__(self, read_seconds: tuple[float, float] = READ_SECONDS) -> None:
        super().__init__(faults=Faults(read_seconds=read_seconds), sleep=_at_once)


class SlowMachine(MemoryDatabase):
    """Transactions age as on a machine that is so many times slower than this one is when it has nothing else to do."""

    def __init__(self, times: float = 10.0) -> None:
        super().__init__(now=lambda: times * thread_time())


async def _at_once(_: float) -> None:
    return None


@dataclass
class Ledger:
    """One shard, owned by this test."""

    database: MemoryDatabase
    lease: Lease
    policy: Policy
    room: dict[str, int] = field(default_factory=lambda: {"": 1_000_000})
    now_ms: int = 1_000_000
    published: list[Publication] = field(default_factory=list)
    confirmed: list[int] = field(default_factory=list)
    seen: list[Effects] = field(default_factory=list)
    definitions: Definitions = field(default_factory=Definitions)
    set_aside: set[bytes] = field(default_factory=set)
    goes_on: bool = True
    """Whether what is left over is done at once; otherwise the test says when."""
    evaluates: bool = True
    """Whether expressions are evaluated that are left to be."""
    defer_dependents: bool = False
    """Whether what follows from a command is left over."""
    doubt: str = ""
    """What is known of this shard's clock."""
    unfinished: bool = False
    """Whether a batch has left something over since this was last looked at."""
    going: bool = False
    """Whether it goes on right now with what is left over."""

    @classmethod
    async def open(cls, database: MemoryDatabase, **policy: Any) -> Ledger:
        await database.run(lambda tr: shards.fix_count(tr, 1))
        step = await database.run(lambda tr: shards.step(tr, "me", 1, count=1))
        return cls(database, step.owned[0], Policy(0, **policy))

    async def batch(self, *commands: Command) -> tuple[Any, ...]:
        confirmed, self.confirmed = self.confirmed, []
        caches = Caches(self.definitions, frozenset(self.set_aside))
        moment = (self.room, self.now_ms, 0.5, self.defer_dependents, self.doubt)
        one = batch.Batch(self.lease, self.policy, caches, commands, confirmed, *moment)
        try:
            done = await self.database.run(lambda tr: batch.run(tr, one))
        except continuations.SetAside as error:
            self.set_aside.add(error.piece)
            raise
        self.definitions.note(done.effects.definitions)
        self.published += done.effects.publications
        self.seen.append(done.effects)
        for node_key, token in done.effects.evaluations:
            key = advance.evaluation_key(0, node_key)
            self.set_aside.add(key)
            if not self.evaluates:
                continue
            await self.batch(Evaluated(node_key, token, await evaluate(self.database, node_key)))
            self.set_aside.discard(key)
        self.unfinished |= done.effects.unfinished
        if self.goes_on and not self.going:
            await self._finish()
        left = commands[len(done.answers) :]
        return (*done.answers, *await self.batch(*left)) if left else done.answers

    async def go_on(self) -> None:
        await self.batch(Continue())

    async def _finish(self) -> None:
        """Goes on until nothing is left to go on with, in a loop: a workflow may run a thousand children."""
        self.going = True
        try:
            while self.unfinished:
                self.unfinished = False
                await self.go_on()
        finally:
            self.going = False

    async def start(
        self, definition: Definition, value: Any = None, *, workflow: str = "w", chunk: int = 1_000
    ) -> None:
        graph = graph_of(definition)
        children = {child.name: child_document(child) for child in children_of(definition)}
        parts = [graph.order[at : at + chunk] for at in range(0, len(graph.order), chunk)]
        for number, part in enumerate(parts, 1):
            body = {
                "workflow": workflow,
                **head_document(definition),
                "input": value,
                "chunk": number,
                "chunks": len(parts),
                "count": len(definition.nodes),
                "nodes": {name: node_document(graph.nodes[name]) for name in part},
                **({"workflows": children} if children and number == 1 else {}),
            }
            answer = await self.ask(Verb.START, body)
        assert answer["state"] == "accepted"

    async def start_one(self, **options: Any) -> Publication:
        """Starts a workflow of one node, and gives what is published of it."""
        await self.start(one_node(**options))
        return self.published[-1]

    async def ask(self, verb: Verb, body: Mapping[str, Any]) -> Any:
        (answer,) = await self.batch(Asked(verb, body))
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def pass_time(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        due = await self.database.read(lambda tr: timers.due(tr, 0, self.now_ms))
        await self.batch(*[Due(timer) for timer in due])

    async def fill(self, capability: str, room: int) -> None:
        await self.batch(Fill(capability, room))

    def finished(self, publication: Publication, outcome: Outcome) -> Finished:
        owner = publication.task.owner
        assert owner is not None
        return Finished(publication.node_key, owner.fence, publication.number, outcome)

    async def play(
        self, act: Callable[[Publication], Outcome], *, pick: Callable[[Sequence[Any]], int] = len
    ) -> list[str]:
        """Executes what is published, in the order that `pick` draws, until nothing is left; gives the nodes."""
        ran: list[str] = []
        while self.published:
            publication = self.published.pop(pick(self.published) % len(self.published))
            self.confirmed.append(publication.number)
            ran.append(publication.node_key.node)
            await self.batch(self.finished(publication, act(publication)))
        return ran

    async def value(self, node: str, kind: str = RESULT) -> Any:
        """The value of this kind that a node of the workflow `w` has."""
        return await self.database.read(lambda tr: value_of(tr, NodeKey("w", node), kind))

    async def states(self, workflow: str = "w") -> dict[str, TaskState]:
        rows = await self.database.read(lambda tr: tr.get_range(*STATUSES.range((workflow,))))
        return {STATUSES.unpack(key)[1]: NodeRecord.unpack(row).state for key, row in rows}

    async def node(self, name: str, workflow: str = "w") -> NodeRecord:
        row = await self.database.read(lambda tr: tr.get(STATUSES.pack((workflow, name))))
        assert row is not None
        return NodeRecord.unpack(row)

    async def run(self, workflow: str = "w") -> RunRecord:
        row = await self.database.read(lambda tr: tr.get(RUNS.pack((workflow,))))
        assert row is not None
        return RunRecord.unpack(row)

    async def state(self, workflow: str = "w") -> WorkflowState:
        return (await self.run(workflow)).state


def one_node(**options: Any) -> Definition:
    flow = Workflow("one")
    flow.task("work", name="one", **options)
    return flow.definition()


def wide(names: int | Iterable[str], capability: str = "work", value: Any = None, **options: Any) -> Workflow:
    """Nodes side by side, of these names or n0, n1, ... so many."""
    flow = Workflow("wide")
    for name in (f"n{number}" for number in range(names)) if isinstance(names, int) else names:
        flow.task(capability, value, name=name, **options)
    return flow


def layered(width: int, depth: int) -> Workflow:
    """Layers of nodes, each after two of the layer before."""
    flow = Workflow("layered")
    layer = [flow.task("work", {"n": 1}, name=f"l0n{number}") for number in range(width)]
    for level in range(1, depth):
        layer = [
            flow.task("work", {"n": 1}, name=f"l{level}n{number}", after=[layer[number], layer[number - 1]])
            for number in range(width)
        ]
    return flow


async def claim_of(ledger: Ledger, publication: Publication, agent: str = "other-2") -> Claim:
    (claim,) = await ledger.batch(Claimed(publication.node_key, publication.number, agent))
    assert isinstance(claim, Claim)
    return claim


def few_steps(patched: pytest.MonkeyPatch, most: int) -> None:
    """Transactions look at so many dependents only."""
    for module in (advance, redrive_steps, continuations):
        patched.setattr(module, "MAX_DEPENDENTS", most)


def completed(value: Any = None) -> Outcome:
    return Outcome(Status.COMPLETED, dumps(value), None, None, AGENT)


def failed(*, retryable: bool = False, status: Status = Status.FAILED) -> Outcome:
    failure = Failure("handler_error", "ValueError", "no", retryable=retryable)
    return Outcome(status, dumps(failure.as_json()), None, None, AGENT, failure=failure)
