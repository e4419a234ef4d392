"""A shard's ledger in memory, driven batch by batch: the test plays broker, agents and time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from time import thread_time
from typing import Any

import pytest

from chaos.simulated_store import Faults, SimulatedDatabase
from coditect.model.ids import AgentId
from coditect.model.result import Failure, Outcome, Status
from coditect.model.retry import Retry
from coditect.wire.control import Started, Verb
from coditect.wire.json import dumps
from coditect.wire.workflow_tasks import Claim
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import After, Call, Definition, From, Node, OnFailure
from coditect.workflow.documents.document import child_document, head_document, node_document
from coditect.workflow.graph import children_of, graph_of
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import timers
from dispatcher.ledger.commands import Asked, Began, Claimed, Command, Continue, Due, Evaluated, Fill, Finished
from dispatcher.ledger.definitions import Caches, Definitions
from dispatcher.ledger.effects import Effects, NodeKey, Notice, OutgoingMessage, Publication
from dispatcher.ledger.keyspace import ATTEMPTS, RUNS, STATUSES
from dispatcher.ledger.nodes import advance
from dispatcher.ledger.nodes.inputs import RESULT, value_of
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.ownership.leases import Lease
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.ledger.rows import NodeRecord, RunRecord, unpack_attempt
from dispatcher.ledger.workflows import continuations, redrive_steps
from dispatcher.ledger.workflows.recover import learn
from dispatcher.shards import batch
from dispatcher.shards.backlog import Backlog
from dispatcher.shards.continuations import evaluate
from dispatcher.store.keys import Space
from dispatcher.store.transaction import Reads

Query = Callable[[Reads, Mapping[str, Any]], dict[str, Any]]
AGENT = AgentId("worker-1")
READ_SECONDS = (0.0005, 0.002)
"""Of a cluster that is not near; nobody waits for it here, but transactions age by it."""


class SlowStore(SimulatedDatabase):
    """Each read takes as long as a cluster's."""

    def __init__(self, read_seconds: tuple[float, float] = READ_SECONDS) -> None:
        super().__init__(faults=Faults(read_seconds=read_seconds), sleep=_at_once)


class SlowMachine(SimulatedDatabase):
    """Transactions age as on a machine that is so many times slower than this one is when it has nothing else to do."""

    def __init__(self, times: float = 10.0) -> None:
        super().__init__(now=lambda: times * thread_time())


async def _at_once(_: float) -> None:
    return None


@dataclass
class Ledger:
    """One shard, owned by this test."""

    database: SimulatedDatabase
    lease: Lease
    policy: Policy
    room: dict[str, int] = field(default_factory=lambda: {"": 1_000_000})
    now_ms: int = 1_000_000
    published: list[Publication] = field(default_factory=list)
    backlog: Backlog = field(default_factory=Backlog)
    confirmed: int = 0
    """The number up to which all publications count as confirmed from the next batch on."""
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
    async def open(cls, database: SimulatedDatabase, **policy: Any) -> Ledger:
        await database.run(lambda tr: shards.fix_count(tr, 1))
        step = await database.run(lambda tr: shards.step(tr, "me", 1, count=1))
        return cls(database, step.owned[0], Policy(0, **policy))

    async def batch(self, *commands: Command) -> tuple[Any, ...]:
        caches = Caches(self.definitions, frozenset(self.set_aside), frozenset(self.backlog))
        moment = (self.room, self.now_ms, 0.5, self.defer_dependents, self.doubt)
        one = batch.Batch(self.lease, self.policy, caches, commands, self.confirmed, *moment)
        try:
            done = await self.database.run(lambda tr: batch.run(tr, one))
        except continuations.SetAside as error:
            self.set_aside.add(error.piece)
            raise
        self.definitions.note(done.effects.definitions)
        self.backlog.follow(done.effects.transitions, done.effects.waiting)
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
        self, flow: Workflow | Definition, value: Any = None, *, workflow: str = "w", chunk: int = 1_000
    ) -> None:
        definition = flow.definition() if isinstance(flow, Workflow) else flow
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

    async def ask(self, verb: Verb, body: Mapping[str, Any]) -> dict[str, Any]:
        (answer,) = await self.batch(Asked(verb, body))
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer

    async def pass_time(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        due = await self.database.read(lambda tr: timers.due(tr, 0, self.now_ms))
        await self.batch(*[Due(timer) for timer in due])

    async def fill(self, capability: str, room: int) -> int:
        """Claims so many nodes of the backlog; gives how many of them were left."""
        taken = self.backlog.take(capability, room)
        (left,) = await self.batch(Fill(capability, tuple(node_key for _, node_key in taken)))
        self.backlog.put_back(capability, taken[len(taken) - len(left) :])
        return len(left)

    async def unsent(self) -> dict[int, NodeKey]:
        """The outbox: what is published, and not confirmed."""
        return (await learn(self.database, 0)).unsent

    def finished(self, publication: Publication, outcome: Outcome) -> Finished:
        owner = publication.task.owner
        assert owner is not None
        return Finished(publication.node_key, owner.fence, publication.number, outcome)

    def began(self, publication: Publication, claim: Claim | None = None) -> Began:
        """An agent's notice that it started, under the fence of the publication or of the claim."""
        task = publication.task
        assert task.owner is not None
        fence = task.owner.fence if claim is None else claim.fence
        attempt = task.attempt if claim is None else claim.attempt
        return Began(Started(*publication.node_key, fence, publication.number, AGENT, attempt, self.now_ms))

    def take(self, node: str) -> Publication:
        """The latest publication of the node, which then no longer counts as published."""
        taken = [publication for publication in self.published if publication.node_key.node == node][-1]
        self.published.remove(taken)
        return taken

    async def end(self, node: str, outcome: Outcome) -> None:
        """The latest publication of the node ends."""
        await self.batch(self.finished(self.take(node), outcome))

    async def complete(self, *nodes: str) -> None:
        """Each of the nodes completes with its own name as its value."""
        for node in nodes:
            await self.end(node, completed(node))

    async def play(
        self,
        act: Callable[[Publication], Outcome],
        *,
        pick: Callable[[Sequence[Any]], int] = len,
        limit: int = 1_000_000,
    ) -> list[str]:
        """Executes what is published, in the order that `pick` draws, until nothing is left; gives the nodes."""
        ran: list[str] = []
        while self.published and len(ran) < limit:
            publication = self.published.pop(pick(self.published) % len(self.published))
            ran.append(publication.node_key.node)
            await self.batch(self.finished(publication, act(publication)))
        return ran

    async def read(self, query: Query, **body: Any) -> dict[str, Any]:
        """The answer to a query."""
        return await self.database.read(lambda tr: query(tr, body))

    async def pages(self, query: Query, **body: Any) -> list[dict[str, Any]]:
        """All pages of the answer to a query."""
        pages: list[dict[str, Any]] = []
        while not pages or pages[-1]["next"] is not None:
            page = body | ({"after": pages[-1]["next"]} if pages else {})
            pages.append(await self.read(query, **page))
        return pages

    async def rows(self, space: Space, *prefix: Any) -> list[tuple[bytes, bytes]]:
        """The rows of the space whose keys begin with the prefix."""
        return await self.database.read(lambda tr: tr.get_range(*space.range(prefix)))

    async def everything(self) -> list[tuple[bytes, bytes]]:
        return await self.database.read(lambda tr: tr.get_range(b"", b"\xff"))

    async def attempts(self, node: str) -> list[AttemptRow]:
        """The attempts of a node of the workflow `w` that others followed."""
        return [unpack_attempt(node, row) for _, row in await self.rows(ATTEMPTS, "w", node)]

    @property
    def messages(self) -> list[OutgoingMessage]:
        """The messages that were sent, but for tasks."""
        return [message for effects in self.seen for message in effects.messages]

    @property
    def notices(self) -> list[Notice]:
        """The events that were published."""
        return [notice for effects in self.seen for notice in effects.notices]

    @property
    def cancels(self) -> list[tuple[NodeKey, int]]:
        """The publications that were called off."""
        return [cancel for effects in self.seen for cancel in effects.cancels]

    async def value(self, node: str, kind: str = RESULT) -> Any:
        """The value of this kind that a node of the workflow `w` has."""
        return await self.database.read(lambda tr: value_of(tr, NodeKey("w", node), kind))

    async def states(self, workflow: str = "w") -> dict[str, TaskState]:
        rows = await self.rows(STATUSES, workflow)
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


def tasks(capability: str = "work", /, **after: str) -> Workflow:
    """Nodes of one capability, each after those that its text names: `tasks(a="", b="", c="a b")`."""
    flow = Workflow("tasks")
    for name, predecessors in after.items():
        flow.task(capability, name=name, after=predecessors.split())
    return flow


def one_map(limit: int = 10) -> Workflow:
    """A node `each` over the elements of the input, which has no more than so many."""
    flow = Workflow("map")
    flow.map("work", "input", {"n": From("item")}, limit=limit, name="each")
    return flow


def fan(width: int) -> Workflow:
    """Nodes side by side, and the node `sum` after them."""
    flow = Workflow("fan")
    nodes = [flow.task("work", {"n": number}, name=f"n{number:04}") for number in range(width)]
    flow.task("sum", name="sum", after=nodes)
    return flow


def some_graph(random: Random, nodes: tuple[int, int] = (2, 9)) -> Definition:
    """A graph of so many nodes with edges and joins of every kind."""
    made = []
    for number in range(random.randint(*nodes)):
        after = tuple(
            After(f"n{before}", random.choice(list(OnFailure)))
            for before in random.sample(range(number), random.randint(0, min(number, 4)))
        )
        join = random.choice(["all", "any", random.randint(1, len(after))]) if after else "all"
        made.append(Node(f"n{number}", Call("work", retry=Retry(max_attempts=1)), after, join))  # type: ignore[arg-type]
    return Definition("random", tuple(made))


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
