"""The worker of one shard: it applies all commands to the shard's workflows, batch by batch.

A batch is one transaction over all commands that have arrived, up to a bound. After the commit its effects are applied
in order: deliveries are settled and requests answered, then claimed tasks are published, and a later batch records
which ones the broker has confirmed. A crash anywhere repeats a step, and every step is idempotent.

The worker is open as long as the shard's lease is this dispatcher's. A commit that finds the lease lost closes the
worker, and its remaining commands go back unsettled.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from coditect.errors import CoditectError, NewerVersion, Retryable, Unroutable
from coditect.model.message import value
from coditect.telemetry.metrics import COMMITS_REFUSED, RESULTS_REFUSED, Metrics
from coditect.wire.control import Progress
from dispatcher.ledger.commands import (
    Asked,
    Began,
    Command,
    Continue,
    Fill,
    Finished,
    Lost,
    NoQueue,
    Proposed,
    Rebuild,
    Show,
)
from dispatcher.ledger.definitions import Caches, Definitions
from dispatcher.ledger.effects import Effects, NodeKey, Publication
from dispatcher.ledger.errors import LostLease
from dispatcher.ledger.ownership.leases import Lease
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.ledger.versions import NEWER_VERSION_FIX
from dispatcher.ledger.workflows.continuations import SetAside
from dispatcher.ledger.workflows.recover import RecoveredShard, learn, nothing
from dispatcher.metrics import ShardMetrics
from dispatcher.ports import Ports
from dispatcher.shards import batch
from dispatcher.shards.backlog import Backlog, Place
from dispatcher.shards.completions import Settle, Undone, ignore, pass_on
from dispatcher.shards.continuations import UnfinishedWork
from dispatcher.shards.in_flight import InFlight
from dispatcher.shards.publishing import Confirms, ShardPublisher, tell
from dispatcher.shards.status_cache import StatusCache
from dispatcher.shards.timers import TimerService
from dispatcher.store.errors import StoreFailed
from dispatcher.taskgraph.projector import Projector

log = logging.getLogger(__name__)

MAX_BATCH_COMMANDS = 256
MAX_BATCH_BYTES = 1_000_000
BATCH_RETRY_SECONDS = 0.2
REBUILD_RETRY_SECONDS = 0.2
"""The pause in seconds before a refused rebuild is tried again."""
WORKER_CLOSE_SECONDS = 0.5
"""The seconds that a closing worker waits for the broker's confirms, and for its last updates to RQ."""
OUTBOX_IDLE_SECONDS = 0.2
"""The seconds without a batch after which the worker records confirms in a batch of its own."""
MOST_FILL = 500


class ShardWorker:
    """The worker of one shard, which applies commands in batches until it is closed or the shard's lease is lost."""

    def __init__(
        self,
        lease: Lease,
        ports: Ports,
        *,
        on_lost: Callable[[int], None],
        nudge: Callable[[], None],
        projector: Projector | None = None,
        marker: str = "",
    ) -> None:
        self.shard = int(lease.name[1])
        self.lease, self._ports = lease, ports
        self._on_lost, self._nudge = on_lost, nudge
        self.projector = projector
        since_ms, approvals = ports.clock.now_ms(), ports.approvals
        direct, traced = not ports.quorum, ports.tracing.active
        self._policy = Policy(self.shard, direct, ports.floor, since_ms, approvals, traced)
        self._entries: deque[QueuedCommand] = deque()
        self._singly = 0
        """The number of next commands that each get a batch of their own, after a batch of several failed."""
        self._defer_dependents = False  # whether that is so of the batch that is under way
        self._wake = asyncio.Event()
        self._definitions = Definitions()
        self._unfinished = UnfinishedWork(self.shard, ports.database, ports.background, self.put)
        self._unsure = False
        """Whether a transaction may have been committed whose effects were not applied in memory."""
        self._publisher = ShardPublisher(ports.broker, self._published, ports.tracing)
        self._unsent: deque[Effects] = deque()
        """The effects of committed transactions whose tasks are yet to be published."""
        self.timer_service = TimerService(self.shard, ports, self.put)
        self._work: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.in_flight = InFlight(ports.capacity)
        self._confirms = Confirms(self.in_flight, self._wake.set)
        self.newer = 0
        """The number of nodes of live workflows whose rows only a newer dispatcher can read."""
        self.status_cache = StatusCache()
        self.backlog = Backlog()
        self._unclaimable: set[NodeKey] = set()
        """The ready nodes whose claim was refused; they are left to the shard's next owner."""
        self.marker = marker
        """The name of the marker queue of the broker to which the shard's tasks were published, or are about to be."""
        self.closed = False
        self._refusals = Refusals(self.shard, ports.metrics, self.put)
        self._refused_commits = ports.metrics.counter(COMMITS_REFUSED)
        self._metrics = ShardMetrics(ports.metrics)
        self._lost = False
        """Whether a refused commit showed that the shard has another owner, so that no other commit is tried."""

    async def open(self, *, between_pages: Callable[[], Awaitable[None]] = nothing) -> None:
        """Start the worker from the shard's state in the ledger, and publish tasks again that may be unpublished.

        `between_pages` is awaited between two reads of a large shard.
        """
        found = await learn(self._ports.database, self.shard, between_pages=between_pages)
        if found.active.newer:
            facts = {"shard": self.shard, "nodes": len(found.active.newer), "fix": NEWER_VERSION_FIX}
            log.warning("A newer dispatcher wrote nodes of live workflows; they are left alone", extra=facts)
        self._take_up(found)
        self.timer_service.open()
        keep = partial(self._ports.background.keep, until=lambda: self.closed)
        self._work = keep(self._run_batches, name=f"shard worker {self.shard}", critical=True)
        if self.projector is not None:
            self._tasks.append(keep(self.projector.run, name=f"projector {self.shard}", critical=False))
        self._nudge()

    def _take_up(self, found: RecoveredShard) -> None:
        """Take over the nodes that are ready or published, and publish again those that may be unsent."""
        active, known = found.active, {flight.publication for _, flight in self.in_flight}
        unsent = {number: node_key for number, node_key in found.unsent.items() if number not in known}
        self._confirms.take_over(found.numbers, unsent, complete=not active.newer)
        for number, node_key in unsent.items():
            self.put(Lost(node_key, number))
        self.newer = len(active.newer)
        self.in_flight.agree(active.in_flight, asyncio.get_running_loop().time())
        self.in_flight.doubt(found.doubtful)
        self.backlog.clear()
        self.backlog.follow(active.ready, {moved.node_key for moved in active.ready} - self._unclaimable)
        if found.has_todo:
            self.put(Continue())
        self.timer_service.set(found.next_due_ms)

    async def close(self) -> None:
        """Close the worker: finish the batch under way, and give the remaining commands back unapplied."""
        self.closed = True
        self._wake.set()
        if self._work is not None and self._work is not asyncio.current_task():
            await asyncio.wait((self._work,))
        if not self._lost:
            self._send()
        last = () if self.projector is None else (self.projector.tell_last(WORKER_CLOSE_SECONDS),)
        await asyncio.gather(self._record_last(), *last)
        self._give_back()

    async def _record_last(self) -> None:
        """Record which publications are confirmed, so that the next owner publishes none of them again."""
        if not self._lost:
            await self._publisher.settled(WORKER_CLOSE_SECONDS)
        if self._confirms.unrecorded and not self._lost:
            try:
                await self._commit([])
            except LostLease as error:
                self._refused(error)
            except CoditectError as error:
                log.debug("The last confirms were not recorded", extra={"shard": self.shard, "reason": str(error)})

    def _give_back(self) -> None:
        self.closed = True
        self._unsent.clear()
        self.timer_service.close()
        self._unfinished.close()
        self._confirms.close()
        self.backlog.clear()
        self.status_cache.clear()
        for task in self._tasks:
            task.cancel()
        if self.projector is not None:
            self.projector.close()
        while self._entries:
            self._entries.popleft().settle(Undone())
        self.in_flight.close()

    def rebuild(self, marker: str, occasion: str, settle: Settle = ignore, *, kept: bool = False) -> None:
        """Have all published tasks published again; if the broker `kept` its data, only mark them as perhaps missing.
        When the broker was `kept`, they only count as doubtful, and those on their way go on. `settle` gets the last
        publication number before the rebuild. A second call for the same occasion does nothing.
        """
        if not kept:
            self._publisher.hold(recall=marker != self.marker)
        self.marker = marker

        def rebuilt(answer: Any) -> None:
            if not isinstance(answer, CoditectError):
                (self._doubt_broker if kept else self._go_on)(answer)
            elif not isinstance(answer, Undone):
                retry = partial(self.rebuild, marker, occasion, kept=kept)
                asyncio.get_running_loop().call_later(REBUILD_RETRY_SECONDS, retry)
            settle(answer)

        self.put(Rebuild(marker, occasion, kept), rebuilt)

    def _doubt_broker(self, last: int) -> None:
        self.in_flight.doubt(last)
        for lost in self.in_flight.lost(asyncio.get_running_loop().time(), self._ports.clock.now_ms()):
            if not lost.agent:  # whose silence may be this process's: the orphan detector knows
                self.put(lost)

    def _go_on(self, last: int) -> None:
        self._publisher.go_on(last)

    def ask(self, command: Command) -> asyncio.Future[Any]:
        """Queue a command; its answer is awaited, which raises the error that refused it, or `Undone` (retryable)."""
        answer = asyncio.get_running_loop().create_future()
        self.put(command, partial(pass_on, answer))
        return answer

    def put(self, command: Command, settle: Settle = ignore, *, size_bytes: int = 0, tries: int = 0) -> None:
        """Queue a command for a later transaction; `settle` is called with its answer or refusal, or with `Undone`."""
        if self.closed:
            settle(Undone())
            return
        self._entries.append(QueuedCommand(command, settle, size_bytes, tries))
        self._wake.set()

    def hear(self, progress: Progress) -> None:
        """Record the time of an agent's report that an attempt still runs, for the orphan detector."""
        self.in_flight.hear(
            NodeKey(progress.workflow, progress.node), progress.fence, asyncio.get_running_loop().time()
        )

    async def _run_batches(self) -> None:
        self._wake.set()  # for what a loop before this one was woken for, and died
        while not self.closed:
            await self._wake.wait()
            self._wake.clear()
            while (self._entries or self._confirms.are_overdue or self._unsure) and not self.closed:
                await self._run_batch(self._next_entries())

    def _next_entries(self) -> list[QueuedCommand]:
        entries, size_bytes, now = list[QueuedCommand](), 0, asyncio.get_running_loop().time()
        self._defer_dependents = self._singly > 0
        limit = 1 if self._defer_dependents else MAX_BATCH_COMMANDS
        self._singly = max(0, self._singly - 1)
        while self._entries and len(entries) < limit:
            if entries and size_bytes + self._entries[0].size_bytes > MAX_BATCH_BYTES:
                break
            entry = self._entries.popleft()
            if isinstance(entry.command, Asked) and entry.command.until <= now:
                entry.settle(Retryable("The request waited longer than its sender"))
                continue
            entries.append(entry)
            size_bytes += entry.size_bytes
        return entries

    async def _run_batch(self, entries: list[QueuedCommand]) -> None:
        try:
            await self._commit(entries)
            entries = []  # settled: what fails from here on gives none of it back
            await self._catch_up()
        except LostLease as error:
            self._refused(error)
            self._lose(entries)
        except StoreFailed:
            self._lose(entries)
            raise
        except Retryable as error:
            log.warning("The store does not take a batch", extra={"shard": self.shard, "reason": str(error)})
            self._entries.extendleft(reversed(entries))
            if isinstance(error, SetAside):
                self._unfinished.set_aside(error)
            await asyncio.sleep(BATCH_RETRY_SECONDS)
        except Exception as error:  # the boundary of batches: a bad command takes no other with it
            if not entries:
                raise
            self._refuse(entries, error)

    def _refuse(self, entries: list[QueuedCommand], error: Exception) -> None:
        """Retry a failed batch command by command; refuse a command that fails even in a batch of its own."""
        if len(entries) > 1 or not self._defer_dependents:
            self._entries.extendleft(reversed(entries))
            self._singly = len(entries)
            return
        self._refusals.refuse(entries[0], error)

    def _refused(self, error: LostLease) -> None:
        self._lost = True
        self._refused_commits.value += 1
        log.warning("A shard is another's by now", extra={"shard": self.shard, **error.facts})

    def _lose(self, entries: list[QueuedCommand]) -> None:
        for entry in entries:
            entry.settle(Undone())
        self._give_back()
        self._on_lost(self.shard)

    async def _commit(self, entries: list[QueuedCommand]) -> None:
        commands, confirmed = [entry.command for entry in entries], 0 if self._unsure else self._confirms.take()
        skipped, waiting = frozenset(self._unfinished.skipped), frozenset(self.backlog)
        clock, caches = self._ports.clock, Caches(self._definitions, skipped, waiting)
        moment = (self._ports.capacity.room(), clock.now_ms(), clock.chance(), self._defer_dependents, clock.doubt)
        next_batch = batch.Batch(self.lease, self._policy, caches, commands, confirmed, *moment)
        began = asyncio.get_running_loop().time()
        try:
            done = await self._ports.database.run(partial(batch.run, batch=next_batch))
        except BaseException:
            self._confirms.wait(OUTBOX_IDLE_SECONDS)
            self._doubt()
            raise
        if done.repeated:
            self._doubt()
        self._confirms.record(confirmed)
        self._count(done.effects, began)
        self._entries.extendleft(reversed(entries[len(done.answers) :]))
        try:
            for entry, answer in zip(entries, done.answers, strict=False):
                entry.settle(answer)
        finally:
            self._after(done.effects)

    def _doubt(self) -> None:
        """Clear cached workflow states and definitions, as a transaction may have been committed without an answer.

        Until memory knows its effects the ledger answers state queries.
        """
        self._unsure = True
        self.status_cache.clear()
        self._definitions = Definitions()

    def _count(self, effects: Effects, began: float) -> None:
        """Update the metrics, caches, published tasks and backlog by the effects of a committed batch."""
        now = asyncio.get_running_loop().time()
        self._metrics.committed(effects, now - began)
        self.status_cache.note(effects)
        self._definitions.note(effects.definitions)
        self.in_flight.follow_all(effects, now)
        self._confirms.add(effects.publications)
        self._confirms.wait(OUTBOX_IDLE_SECONDS)
        self.backlog.follow(effects.transitions, effects.waiting)

    def _after(self, effects: Effects) -> None:
        """Carry out a committed batch's effects: publish tasks and events, update RQ, queue follow-up commands."""
        self._unsent.append(effects)
        asyncio.get_running_loop().call_soon(self._send)
        if self.projector is not None:
            for workflow in effects.unshown:
                self.put(Show(workflow))
        if effects.proposed:
            self.put(Proposed(tuple(effects.proposed)))
        for evaluation in effects.evaluations:
            self._unfinished.evaluate(*evaluation)
        if effects.unfinished:
            self.put(Continue())
        self.timer_service.set_no_later(effects.due_ms)
        self._nudge()

    def _send(self) -> None:
        while self._unsent:
            effects = self._unsent.popleft()
            for publication in effects.publications:
                self._publisher.send(publication)
            tell(self._ports, effects)
            if self.projector is not None:
                self.projector.follow(effects)

    def _published(self, publication: Publication, error: BaseException | None) -> None:
        if error is None:
            self._confirms.note(publication.number)
            self._confirms.wait(OUTBOX_IDLE_SECONDS)
            if self._ports.capacity.note_queue(publication.task.capability):
                self._nudge()
        elif self.closed:
            return
        elif isinstance(error, Unroutable):
            self._ports.capacity.note_no_queue(publication.task.capability)
            self.put(NoQueue(publication.node_key, publication.number))
        else:
            log.warning("A publication is unknown; it is repeated", extra={"reason": str(error), "shard": self.shard})
            lost = Lost(publication.node_key, publication.number)
            asyncio.get_running_loop().call_later(BATCH_RETRY_SECONDS, self.put, lost)

    async def _catch_up(self) -> None:
        """Read the shard's state from the ledger again, once a commit succeeds after one with an unknown outcome.

        No write of an earlier try comes after that commit.
        """
        if not self._unsure or self.closed:
            return
        found = await learn(self._ports.database, self.shard)
        self._unsure = False
        self._take_up(found)
        self.status_cache.clear()
        self._nudge()

    def fill(self, capability: str, room: int) -> None:
        """Queue a command to claim up to `room`, at most 500, ready nodes of a capability, if any; reserve capacity."""
        if not self.closed and (taken := self.backlog.take(capability, min(room, MOST_FILL))):
            self._fill(capability, taken)

    def _fill(self, capability: str, taken: list[Place]) -> None:
        self._ports.capacity.keep(capability, len(taken))
        node_keys = tuple(node_key for _, node_key in taken)
        self.put(Fill(capability, node_keys), partial(self._filled, capability, taken))

    def _filled(self, capability: str, taken: list[Place], left: Any) -> None:
        """Free the capacity that a `Fill` command reserved, and put the nodes back that it left.

        Refused nodes are claimed one by one; a node that is refused alone is left alone.
        """
        self._ports.capacity.free(capability, len(taken))
        if not isinstance(left, CoditectError):
            if left:
                self.backlog.put_back(capability, taken[-len(left) :])
                self._nudge()
        elif isinstance(left, Undone):
            return
        elif len(taken) == 1:
            self._unclaimable.update(node_key for _, node_key in taken)
        else:
            for place in taken:
                self._fill(capability, [place])


MAX_RESULT_TRIES = 5
"""The number of tries to record the end of an attempt, with growing pauses: six seconds in all."""
PAUSES_OF_KEPT = 25
"""The pause before a retry of a report on a newer dispatcher's row, as a multiple of the first pause: five seconds."""


@value
class QueuedCommand:
    """A command in a shard worker's queue, with what gets its answer, its size, and how many tries were refused."""

    command: Command
    settle: Settle
    size_bytes: int = 0
    tries: int = 0  # that were refused before


class Refusals:
    """The handler of one shard's failed commands: it refuses each, or queues it again after a pause, by `put`."""

    def __init__(self, shard: int, metrics: Metrics, put: Callable[..., None]) -> None:
        self._shard = shard
        self._unrecorded = metrics.counter(RESULTS_REFUSED, reason="unrecorded")
        self._put = put
        self._has_met_newer = False

    def refuse(self, entry: QueuedCommand, error: Exception) -> None:
        """Refuse a command that failed in a batch of its own; retry a result first, then record a failed attempt.

        After NewerVersion a result or a start is retried without end.
        """
        if isinstance(error, NewerVersion):
            self._leave_alone(entry, error)
            return
        log.error("A command cannot be done; it is refused", exc_info=error, extra={"shard": self._shard})
        refusal = error if isinstance(error, CoditectError) else CoditectError("The control plane failed on this")
        if not isinstance(entry.command, Finished) or entry.command.is_unrecorded:
            entry.settle(refusal)
        elif entry.tries < MAX_RESULT_TRIES:
            self._put_later(entry, BATCH_RETRY_SECONDS * 2**entry.tries, tries=entry.tries + 1)
        else:
            self._unrecorded.value += 1
            self._put(entry.command.unrecorded(error), partial(_refused_before, entry.settle, refusal))

    def _leave_alone(self, entry: QueuedCommand, error: NewerVersion) -> None:
        """Retry a result or a start later, or refuse another command, as only a newer dispatcher can read its row."""
        if not self._has_met_newer:
            self._has_met_newer = True
            facts = {"shard": self._shard, "command": type(entry.command).__name__, **error.facts}
            log.warning("A newer dispatcher wrote what a command needs; such rows are left alone", extra=facts)
        if isinstance(entry.command, Finished | Began):
            self._put_later(entry, BATCH_RETRY_SECONDS * PAUSES_OF_KEPT, tries=entry.tries)
        else:
            entry.settle(error)

    def _put_later(self, entry: QueuedCommand, seconds: float, *, tries: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(
            seconds, lambda: self._put(entry.command, entry.settle, size_bytes=entry.size_bytes, tries=tries)
        )


def _refused_before(settle: Settle, refusal: CoditectError, answer: Any) -> None:
    """Settle an agent's refused result, once a failed attempt is recorded in its place, or could not be either."""
    settle(answer if isinstance(answer, Undone) else refusal)
