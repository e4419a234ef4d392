"""Wrappers of a dispatcher's ports that record commits, publishes and acks, and have points to inject faults at.

The wrappers see the written rows and the sent messages, and trust no report. Each call is also a place where a fault
may end, stop or fail the process (`POINTS`): between any two steps of a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from chaos.history import COMMIT, Note, Type
from coditect.broker.port import Broker, Consumer, Delivery, OnDelivery
from coditect.errors import CoditectError, PublishUnconfirmed
from coditect.model.message import Message
from coditect.wire import routing, tasks
from coditect.wire.control import PROGRESS_TYPE, STARTED_TYPE
from coditect.wire.workflow_tasks import RESULTS_TYPE, read_owners
from dispatcher.coordination import lock_rows
from dispatcher.ledger import versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import ATTEMPTS, LEASES, LOCKS, MARKERS, PUBLISHED, RESTORES, STATUSES
from dispatcher.ledger.nodes.attempts import DIED
from dispatcher.ledger.outbox import Numbers
from dispatcher.ledger.ownership.shards import SHARD_LEASE as SHARD
from dispatcher.ledger.rows import NodeRecord, unpack_attempt
from dispatcher.store.errors import StoreFailed
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads, Transaction
from dispatcher.taskgraph.port import Change, Job, Proposal, TaskGraph

Result = TypeVar("Result")
Reached = Callable[[str], None]
Row = tuple[str, str, dict[str, Any]]

POINTS: Mapping[str, str] = {
    "commit.before": "the transaction's writes are made and not committed; on SQLite the store's lock is held",
    "commit.after": "they are committed, and nothing has followed from that yet",
    "publish.before": "a node's task is about to be given to the broker",
    "publish.after": "the broker has confirmed it; the ledger does not know that",
    "ack.before": "a result is recorded, and about to be acknowledged",
    "ack.after": "it is acknowledged",
    "answer.before": "a request was done, and is about to be answered",
    "answer.after": "the answer is confirmed; the request is not acknowledged",
    "tell.before": "RQ is about to be told what the ledger has",
    "tell.after": "RQ was told; the ledger does not know that",
    "adopt.before": "jobs are about to be taken from RQ's queues",
    "adopt.after": "they were taken; nothing is claimed for them",
}
"""The failpoints of a dispatcher by name, each with the state of the system at that point."""
RESULTS = routing.results_queue(0).removesuffix("0")


def nowhere(point: str) -> None:
    """Do nothing where a fault may be injected (a failpoint); the default for a dispatcher with no failpoint set."""


class Rows:
    """The collector of what a try of a transaction writes to nodes, shards, locks and restores, as history rows."""

    def __init__(self) -> None:
        self._states: dict[str, dict[str, Any]] = {}
        self._before = Numbers()
        self._numbers: tuple[int, Numbers] | None = None
        """The shard whose publication numbers the try writes, with these numbers."""
        self._built: dict[str, int] = {}
        self._leases: dict[str, dict[str, Any]] = {}
        self._restores: dict[str, dict[str, Any]] = {}
        self._died: list[tuple[str, dict[str, Any]]] = []
        self._tickets: dict[str, dict[str, Any]] = {}

    def written(self, key: bytes, value: bytes) -> None:
        """Collect a row of a node or its lost attempt, of a shard, a lock, or a restore."""
        if STATUSES.contains(key):
            workflow, node = STATUSES.unpack(key)
            row = NodeRecord.unpack(value)
            facts = {"state": row.state.value, "fence": row.fence, "attempt": row.attempt, "agent": row.agent}
            self._states[f"{workflow}:{node}"] = facts | {"publication": row.publication}
        elif ATTEMPTS.contains(key):
            workflow, node, fence = ATTEMPTS.unpack(key)
            attempt = unpack_attempt(node, value)
            if attempt.status == "lost" and attempt.reason == DIED.reason:
                self._died.append((f"{workflow}:{node}", {"agent": attempt.agent, "fence": fence}))
        elif PUBLISHED.contains(key):
            self._numbers = PUBLISHED.unpack(key)[0], Numbers(*versions.PUBLISHED.unpack(value))
        elif MARKERS.contains(key):
            self._built[f"shard-{MARKERS.unpack(key)[0]}"] = versions.MARKER.unpack(value)[2]
        elif LEASES.contains(key) and (name := LEASES.unpack(key))[0] == SHARD:
            owner, epoch, _ = versions.LEASE.unpack(value)
            self._leases[f"shard-{name[1]}"] = {"owner": owner, "epoch": epoch}
        elif RESTORES.contains(key):
            workflow, number = RESTORES.unpack(key)
            _, by, checkpoint = versions.RESTORE.unpack(value)
            self._restores[workflow] = {"number": number, "by": by, "checkpoint": checkpoint}
        elif LOCKS.contains(key):
            ticket = lock_rows.TICKETS.unpack((key, value))
            self._tickets[ticket.id] = {"ticket": ticket.id, "place": ticket.number, "agent": ticket.agent}

    def read(self, key: bytes, value: bytes | None) -> None:
        """Collect the publication numbers of a shard before the try."""
        if value is not None and PUBLISHED.contains(key):
            self._before = Numbers(*versions.PUBLISHED.unpack(value))

    def told(self, version: int) -> list[Row]:
        """Return the collected writes as history rows: leases, restores, tickets, claims, deaths, states, confirms.

        Each has the `version`, the transaction's read version. A blocked node that was never claimed gives no row.
        """
        rows: list[Row] = [("lease", key, {**facts, "version": version}) for key, facts in self._leases.items()]
        rows += [("restored", key, {**facts, "version": version}) for key, facts in self._restores.items()]
        rows += [("ticket", facts["agent"], {**facts, "version": version}) for facts in self._tickets.values()]
        rows += [("built", key, {"last": last, "version": version}) for key, last in self._built.items()]
        rows += [("died", key, {**facts, "version": version}) for key, facts in self._died]
        for key, facts in self._states.items():
            if facts["state"] == "blocked" and not facts["fence"]:
                continue  # with a fence it was discarded, and what its attempts tell is late
            if self._numbers is not None and facts["state"] == "published":
                shard, _ = self._numbers
                number = {name: facts[name] for name in ("publication", "fence")}
                if number["publication"] > self._before.last:  # else only what is known of the node has changed
                    rows.append(("claim", key, {"shard": shard, **number, "version": version}))
            rows.append(("state", key, {**facts, "version": version}))
        if self._numbers is not None and (confirmed := self._numbers[1].confirmed) > self._before.confirmed:
            rows.append(("confirmed", f"shard-{self._numbers[0]}", {"number": confirmed, "version": version}))
        return rows


class RecordedDatabase:
    """A wrapper of a `Database` that records commits of nodes, leases and restores, and has failpoints around them."""

    def __init__(self, database: Database, note: Note, *, reached: Reached = nowhere) -> None:
        self._database = database
        self._note = note
        self._reached = reached
        self._numbers = count(1)

    async def __aenter__(self) -> Self:
        await self._database.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._database.__aexit__(kind, error, trace)

    async def run(self, body: Callable[[Transaction], Result]) -> Result:
        """Run a function as `Database.run` does; record tries that write nodes, leases or restores, with outcomes."""
        tries: list[str] = []
        wrote = False

        def noted(tr: Transaction) -> Result:
            nonlocal wrote
            rows = Rows()
            version = tr.get_read_version()
            result = body(cast(Transaction, _RecordedTransaction(tr, rows)))
            told = rows.told(version)
            if wrote := bool(told):
                tries.append(str(next(self._numbers)))
                self._note(Type.INVOKE, COMMIT, tries[-1], rows=told)
                self._reached("commit.before")
            return result

        try:
            result = await self._database.run(noted)
            if wrote:
                self._reached("commit.after")
                self._note(Type.OK, COMMIT, tries.pop())
            return result
        finally:
            for unknown in tries:  # a try that was repeated may have been committed all the same
                self._note(Type.INFO, COMMIT, unknown)

    async def read(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function as `Database.read` does, and record nothing."""
        return await self._database.read(body)

    async def ask(self, body: Callable[[Reads], Result]) -> Result:
        """Run a read-only function for a user's question as `Database.ask` does, and record nothing."""
        return await self._database.ask(body)

    async def failure(self) -> StoreFailed:
        """Wait until the store fails for good, as `Database.failure` does, and return the error."""
        return await self._database.failure()

    @property
    def exclusive(self) -> bool:
        """Tell whether no other process can have the store open, as `Database.exclusive` does."""
        return self._database.exclusive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


class _RecordedTransaction:
    """A wrapper of a `Transaction` that collects what it reads and sets."""

    __slots__ = ("_rows", "_transaction")

    def __init__(self, transaction: Transaction, rows: Rows) -> None:
        self._transaction = transaction
        self._rows = rows

    def get(self, key: bytes, *, snapshot: bool = False) -> bytes | None:
        """Return the value of a key as `Transaction.get` does, and record it."""
        value = self._transaction.get(key, snapshot=snapshot)
        self._rows.read(key, value)
        return value

    def set(self, key: bytes, value: bytes) -> None:
        """Write a key and its value as `Transaction.set` does, and record them."""
        self._transaction.set(key, value)
        self._rows.written(key, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transaction, name)


class RecordedBroker:
    """A wrapper of a `Broker` that records publishes of workflow tasks and acks of their results; with failpoints."""

    def __init__(self, broker: Broker, note: Note, *, reached: Reached = nowhere) -> None:
        self._broker = broker
        self._note = note
        self._reached = reached

    def publish(self, message: Message, *, exchange: str, routing_key: str, **how: Any) -> Awaitable[None]:
        """Publish as `Broker.publish` does; record workflow tasks; with failpoints around these and answers."""
        if exchange == routing.REPLIES:
            return self._answered(message, exchange, routing_key, how)
        if exchange not in (routing.SUBMIT, routing.AGENTS) or tasks.WORKFLOW_HEADER not in message.headers:
            return self._broker.publish(message, exchange=exchange, routing_key=routing_key, **how)
        self._reached("publish.before")
        self._note(Type.INVOKE, "publish", str(message.message_id), **_numbers(message))
        sent = asyncio.ensure_future(self._broker.publish(message, exchange=exchange, routing_key=routing_key, **how))
        return self._confirmed(sent, str(message.message_id))

    async def _answered(self, message: Message, exchange: str, routing_key: str, how: dict[str, Any]) -> None:
        self._reached("answer.before")
        await self._broker.publish(message, exchange=exchange, routing_key=routing_key, **how)
        self._reached("answer.after")

    async def _confirmed(self, sent: Awaitable[None], key: str) -> None:
        try:
            await sent
        except PublishUnconfirmed:
            self._note(Type.INFO, "publish", key)
            raise
        except CoditectError:
            self._note(Type.FAIL, "publish", key)
            raise
        self._reached("publish.after")
        self._note(Type.OK, "publish", key)

    async def consume(self, queue: str, on_delivery: OnDelivery, **how: Any) -> Consumer:
        """Consume a queue as `Broker.consume` does; for a results queue, record the acks, with failpoints."""
        if queue.startswith(RESULTS):
            given = on_delivery

            def on_delivery(delivery: Delivery) -> None:
                given(_RecordedDelivery(delivery, self._note, self._reached))

        return await self._broker.consume(queue, on_delivery, **how)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)


class RecordedGraph:
    """A wrapper of a `TaskGraph` with failpoints before and after its writing calls."""

    def __init__(self, graph: TaskGraph, *, reached: Reached = nowhere) -> None:
        self._graph = graph
        self._reached = reached

    async def create(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Create jobs in RQ as `TaskGraph.create` does, with a failpoint before and after."""
        self._reached("tell.before")
        there = await self._graph.create(jobs)
        self._reached("tell.after")
        return there

    async def tell(self, changes: Sequence[Change]) -> None:
        """Set the states of jobs in RQ as `TaskGraph.tell` does, with a failpoint before and after."""
        self._reached("tell.before")
        await self._graph.tell(changes)
        self._reached("tell.after")

    async def adopt(self, shards: Collection[int], room: Mapping[str, int]) -> list[Proposal]:
        """Take ready jobs from RQ as `TaskGraph.adopt` does; failpoints: before if there is room, after if any came."""
        if not shards or not any(number > 0 for number in room.values()):
            return await self._graph.adopt(shards, room)
        self._reached("adopt.before")
        taken = await self._graph.adopt(shards, room)
        if taken:
            self._reached("adopt.after")
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._graph, name)


class _RecordedDelivery:
    """A wrapper of the delivery of a result that records the ack in the history."""

    __slots__ = ("_delivery", "_note", "_reached")

    def __init__(self, delivery: Delivery, note: Note, reached: Reached) -> None:
        self._delivery = delivery
        self._note = note
        self._reached = reached

    def ack(self) -> None:
        """Record the ack of each result in the delivery, unless the delivery is lost; then ack; with failpoints."""
        told = list(_results(self._delivery))
        if not told:
            self._delivery.ack()
            return
        self._reached("ack.before")
        if not self._delivery.lost:
            for task, numbers in told:
                self._note(Type.OK, "ack", task, **numbers)
        self._delivery.ack()
        self._reached("ack.after")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._delivery, name)


def _results(delivery: Delivery) -> Iterator[tuple[str, dict[str, int]]]:
    """Yield the id of each task whose result is in a message, with the fence, publication and shard."""
    message = delivery.message
    if message.type == RESULTS_TYPE:
        shard = delivery.routing_key
        for owner, publication in read_owners(message, shard):
            task = NodeKey(owner.workflow, owner.node).task_id
            yield task, {"fence": owner.fence, "publication": publication, "shard": int(shard)}
    elif message.type not in (STARTED_TYPE, PROGRESS_TYPE) and tasks.WORKFLOW_HEADER in message.headers:
        yield str(message.correlation_id), _numbers(message)


def _numbers(message: Message) -> dict[str, int]:
    headers = message.headers
    found = {"fence": int(headers[tasks.FENCE]), "publication": int(headers.get(tasks.PUBLICATION, 0))}
    return found | ({"shard": int(headers[tasks.ORIGIN])} if tasks.ORIGIN in headers else {})
