"""The shards of which a dispatcher holds the leases, with a shard worker for each.

Every step renews, takes and gives shards (`ledger/ownership/shards.py`). A new shard gets its queues and its worker;
a lost one is closed. Leaving gives all shards away at once, when the batches under way are finished.

A dispatcher that had no broker, or no store, for as long as a lease lasts can do nothing for its shards: it gives them
up, so that the others take them, and takes its share again when it has recovered. In a store that only this process can
open, no other dispatcher could take them, and they are kept.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import starmap
from secrets import token_hex
from types import TracebackType
from typing import Any, Self

from coditect.broker.port import Consumer, Delivery
from coditect.broker.topology import base_topology, shard_queues
from coditect.errors import CoditectError, InputError, NotFound, Retryable, SetupError
from coditect.telemetry.metrics import (
    COMMITS_REFUSED,
    LOCKS_FREED_SECONDS,
    RECOVERY_SECONDS,
    RESULTS_REFUSED,
    SHARDS,
    SHARDS_OWNED,
    UNDELIVERABLE,
    WORKFLOWS_ACTIVE,
)
from coditect.wire import routing
from dispatcher.ledger.commands import Command
from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import Lease, Pulse
from dispatcher.ledger.ownership.shards import shard_of
from dispatcher.ledger.workflows.republish import built
from dispatcher.liveness.broker_epoch import BrokerEpoch
from dispatcher.liveness.ping import Pings
from dispatcher.ports import Ports
from dispatcher.shards.completions import Settle
from dispatcher.shards.orphans import OrphanDetector
from dispatcher.shards.results import ResultsConsumer
from dispatcher.shards.worker import ShardWorker
from dispatcher.store.transaction import Transaction
from dispatcher.taskgraph.port import TaskGraph
from dispatcher.taskgraph.projector import Projector

log = logging.getLogger(__name__)

OWNER_PREFIX = "dispatcher"
RESULTS_PREFETCH = 500
CONTROL_PREFETCH = 200
LEAVE_SECONDS = 5.0
STEP_SECONDS = 0.2
"""The time in seconds to wait for the step under way before all shards are handed over."""
GIVE_UP_SECONDS = 1.0
"""The time in seconds that all shards may take to close when the dispatcher gives them up."""
CONSUMER_CANCEL_SECONDS = 0.1
"""The time in seconds to wait for the broker to cancel a closing shard's consumers; later deliveries are returned."""


def new_owner() -> str:
    """Return a new, unique owner name for a dispatcher process that starts, to hold leases under."""
    return f"{OWNER_PREFIX}-{os.getpid()}-{token_hex(4)}"


class ShardOwnership:
    """The shards of one dispatcher: `async with` begins to take shards, and its exit releases all of them."""

    def __init__(
        self,
        ports: Ports,
        *,
        owner: str,
        pings: Pings,
        graph: TaskGraph | None = None,
        evict: Callable[[str], Awaitable[object]] | None = None,
        wanted: int = shards.DEFAULT_SHARDS,
    ) -> None:
        self.owner = owner
        self.count = wanted
        self.workers: dict[int, ShardWorker] = {}
        self._ports = ports
        self._pings = pings
        self.on_request: Callable[[Delivery], None] = Delivery.requeue
        """The handler of messages in the control queues of the shards; set before entering."""
        self._graph = graph
        self._evict = evict
        self.on_room: Callable[[], None] = lambda: None
        """The callback that is called when a node becomes ready or capacity becomes free; set before entering."""
        self.on_open: list[Callable[[int], None]] = []
        self.on_close: list[Callable[[int], None]] = []
        """The callbacks that get a shard's number when this dispatcher begins to serve the shard, and when it stops."""
        self.markers = BrokerEpoch(ports.broker, ports.database, ports.clock)
        self._returns = 0
        self._consumers: dict[int, list[Consumer]] = {}
        self._pulses: dict[str, Pulse] = {}
        self._beat = 0
        self._beaten = 0.0  # when the last beat began
        self._task: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._missed = {"broker": 0.0, "store": 0.0}
        """The seconds for which the broker or the store has not answered, while this process ran."""
        self.cut_off_from = ""
        """The server that did not answer when the shards were given up, broker or store; empty otherwise."""
        ports.metrics.observe(SHARDS, lambda: self.count)
        ports.metrics.observe(SHARDS_OWNED, lambda: len(self.workers))
        ports.metrics.observe(WORKFLOWS_ACTIVE, self._active)

    async def __aenter__(self) -> Self:
        self._ports.broker.on_reconnect(self.returned)
        self.count = await self._ports.database.run(self._begin)
        await self._step()
        keep = partial(self._ports.background.keep, critical=True, idle=True, until=self._ending.is_set)
        self._task = keep(self._keep, name="leases")
        if not self._ports.database.exclusive:
            keep(self._watch, name="broker and store, for the leases")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.hand_over()

    async def hand_over(self) -> None:
        """Release all shards to other dispatchers, within a second even when the broker does not answer.

        The store may take `LEAVE_SECONDS`; without an answer the leases lapse. Idempotent.
        """
        if self._ending.is_set():
            return
        self._ending.set()
        if self._task is not None and not (await asyncio.wait((self._task,), timeout=STEP_SECONDS))[0]:
            self._task.cancel()  # it waits for the broker, or for the store as what follows would
            await asyncio.wait((self._task,))
        await asyncio.gather(*(self._close(shard) for shard in tuple(self.workers)))
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._ports.database.run(lambda tr: shards.leave(tr, self.owner))
        except (TimeoutError, CoditectError) as unsaid:
            log.warning("The shards were not handed over; their leases will lapse", extra={"reason": repr(unsaid)})

    def put(self, shard: int, command: Command, settle: Settle, *, size_bytes: int) -> bool:
        """Give a command to the shard's worker; return False when the dispatcher does not own the shard."""
        worker = self.workers.get(shard)
        if worker is None or worker.closed:
            return False
        worker.put(command, settle, size_bytes=size_bytes)
        return True

    # -- steps ------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._ending.is_set():
            due = max(due + shards.STEP_MS / 1000, loop.time())
            try:
                async with asyncio.timeout(max(0.0, due - loop.time())):
                    await self._ending.wait()
                return
            except TimeoutError:
                pass
            if self.cut_off_from == "broker" and not self._ports.broker.connected:
                continue
            try:
                await self._step()
            except Retryable as error:
                log.warning("A step of the leases did not come through", extra={"reason": str(error)})

    async def _watch(self) -> None:
        """Give up all shards when the broker or the store does not answer for as long as a lease lasts."""
        now = asyncio.get_running_loop().time
        while not self._ending.is_set():
            looked = now()
            await asyncio.sleep(shards.STEP_MS / 1000)
            passed = min(now() - looked, leases.TTL_MS / 1000 / leases.LOOKS_PER_TTL)  # more, and we stood still
            self._missed["store"] += passed
            self._missed["broker"] = 0.0 if self._ports.broker.connected else self._missed["broker"] + passed
            gone = next((name for name, seconds in self._missed.items() if seconds * 1000 >= leases.TTL_MS), "")
            if gone and not self.cut_off_from and not self._ending.is_set():
                self.cut_off_from = gone
                await self._give_up()

    async def _give_up(self) -> None:
        """Close every shard's worker, and end the leases in the store if the store answers."""
        facts = {"cut_off_from": self.cut_off_from, "shards": sorted(self.workers)}
        log.warning("The dispatcher was cut off for as long as a lease lasts: it gives its shards up", extra=facts)
        start = self._ports.background.start
        closing = [start(self._close(shard), name=f"close shard {shard}") for shard in tuple(self.workers)]
        if closing:
            await asyncio.wait(closing, timeout=GIVE_UP_SECONDS)
        if self.cut_off_from == "broker":
            try:
                async with asyncio.timeout(GIVE_UP_SECONDS):
                    await self._ports.database.run(lambda tr: leases.leave(tr, self.owner))
            except (TimeoutError, CoditectError) as unsaid:
                log.debug("The leases will lapse", extra={"reason": repr(unsaid)})

    def _begin(self, tr: Transaction) -> int:
        """Return the store's number of shards, setting it if new; in a one-process store end other owners' leases."""
        if self._ports.database.exclusive:
            leases.expire_others(tr, self.owner)
        return shards.fix_count(tr, self.count)

    def _look(self, beats: Mapping[str, int]) -> None:
        now_ms = round(asyncio.get_running_loop().time() * 1000)
        self._pulses = leases.look(self._pulses, beats, now_ms=now_ms)

    async def _step(self) -> None:
        pulses = tuple(self._pulses.values())
        beat = self._next_beat()
        busy = frozenset(self.workers)
        step = await self._ports.database.run(
            lambda tr: shards.step(tr, self.owner, beat, count=self.count, pulses=pulses, busy=busy)
        )
        self._missed["store"], self.cut_off_from = 0.0, ""
        self._look(step.beats)
        owned = {int(lease.name[1]): lease for lease in step.owned}
        for shard in tuple(self.workers):
            worker, lease = self.workers.get(shard), owned.get(shard)
            # of an earlier epoch, it does not know what another owner did in between
            if worker is not None and (worker.closed or lease is None or lease.epoch != worker.lease.epoch):
                log.info("A shard is not worked for here any more", extra={"shard": shard})
                await self._close(shard)
        for shard in step.to_give:
            log.info("A shard is handed over", extra={"shard": shard})
            await self._close(shard)
        missing = {shard: lease for shard, lease in owned.items() if shard not in {*self.workers, *step.to_give}}
        # Opening is a dozen round trips: one shard after the other, a busy machine needs longer than a lease lasts.
        opened = await asyncio.gather(*starmap(self._try_to_open, missing.items()), return_exceptions=True)
        for error in filter(None, opened):
            raise error
        if step.to_give:
            await self._step()

    def _next_beat(self) -> int:
        self._beat, self._beaten = self._beat + 1, asyncio.get_running_loop().time()
        return self._beat

    async def _renew(self) -> None:
        """Renew the leases amid a step that takes long, because it reads a large shard."""
        if asyncio.get_running_loop().time() - self._beaten >= shards.STEP_MS / 1000:
            beat = self._next_beat()
            await self._ports.database.run(lambda tr: leases.renew(tr, self.owner, beat))
            self._missed["store"] = 0.0

    async def _try_to_open(self, shard: int, lease: Lease) -> None:
        """Open the worker of a shard that was taken; only log an InputError or SetupError: a later call tries again."""
        try:
            await self._open(shard, lease)
        except (InputError, SetupError) as error:
            log.warning("A shard could not be opened; it is tried again", extra={"shard": shard, "reason": str(error)})

    async def _open(self, shard: int, lease: Lease) -> None:
        if lease.previous and lease.previous != self.owner and self._evict is not None:
            await self._evict(lease.previous)
        broker = self._ports.broker
        await self._declare(shard)
        projector = None if self._graph is None else Projector(self._graph, shard, moved=self._nudge)
        known = await self._ports.database.read(lambda tr: built(tr, shard))
        worker = ShardWorker(
            lease,
            self._ports,
            on_lost=self._lost,
            nudge=self._nudge,
            projector=projector,
            marker=known.marker,
        )
        returns = self._returns
        await self._check(worker)
        try:
            await worker.open(between_pages=self._renew)
            self.workers[shard] = worker
            if returns != self._returns:
                await self._check(worker)
            detector = OrphanDetector(worker, broker, self._ports.clock, self._pings)
            name = f"orphan detector {shard}"
            self._ports.background.keep(detector.run, name=name, critical=True, idle=True, until=lambda: worker.closed)
            listened = await self._consume(shard, worker)
        except Exception:  # half open it would stay so, deaf or beside its successor: the next step opens another
            self.workers[shard] = worker
            await self._close(shard)
            raise
        if listened:
            for opened in self.on_open:
                opened(shard)
            log.info("A shard is worked for here", extra={"shard": shard, "epoch": lease.epoch})

    async def _declare(self, shard: int) -> None:
        """Declare the shard's queues, and declare the base topology again when one of its exchanges is missing."""
        queues = shard_queues(shard)
        try:
            await self._ports.broker.declare(queues)
        except NotFound:
            await self._ports.broker.declare(base_topology() + queues)

    async def _consume(self, shard: int, worker: ShardWorker) -> bool:
        """Start the consumers of a shard's queues; return False when the shard was closed meanwhile."""
        consumers: list[Consumer] = []
        self._consumers[shard] = consumers
        for queue, take, prefetch in (
            (routing.results_queue(shard), ResultsConsumer(worker).take, RESULTS_PREFETCH),
            (routing.control_queue(shard), self.on_request, CONTROL_PREFETCH),
        ):
            consumer = await self._ports.broker.consume(
                queue, take, prefetch=prefetch, group=queue, on_lost=worker.timer_service.deafened
            )
            if worker.closed or self._consumers.get(shard) is not consumers:
                await self._cancel([consumer])
                return False
            consumers.append(consumer)
        worker.timer_service.listen(consumers)
        return True

    async def returned(self) -> None:
        """Check after a reconnect whether the broker kept its data; if it did not, publish all published tasks again.
        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
            CoditectError: any error of `Database.read`.
        """
        self._returns += 1
        for worker in self.workers.values():
            worker.timer_service.hold()
        found: dict[str, str] = {}
        for worker in tuple(self.workers.values()):
            if worker.marker not in found:
                found[worker.marker] = await self.markers.of_broker(worker.marker)
            self._build_on(worker, found[worker.marker])

    async def _check(self, worker: ShardWorker) -> None:
        self._build_on(worker, await self.markers.of_broker(worker.marker))

    def _build_on(self, worker: ShardWorker, marker: str) -> None:
        if marker == worker.marker:
            return
        if worker.marker:
            log.warning(
                "The broker is not the one that the shard knew; what was published is published again",
                extra={"shard": worker.shard, "marker": marker, "before": worker.marker},
            )
        worker.rebuild(marker, marker)

    async def _close(self, shard: int) -> None:
        worker = self.workers.get(shard)
        await self._cancel(self._consumers.pop(shard, []))
        if worker is not None and self.workers.get(shard) is worker:  # and not its successor, when two close it
            del self.workers[shard]
            for closed in self.on_close:
                closed(shard)
            await worker.close()

    async def _cancel(self, consumers: Sequence[Consumer]) -> None:
        start = self._ports.background.start
        ends = [start(consumer.cancel(), name=f"end of {consumer.queue}") for consumer in consumers]
        if ends:
            await asyncio.wait(ends, timeout=CONSUMER_CANCEL_SECONDS)

    def _nudge(self) -> None:
        self.on_room()

    def _lost(self, shard: int) -> None:
        self._ports.background.start(self._close(shard), name=f"close shard {shard}")

    def worker_of(self, workflow: str) -> ShardWorker | None:
        """Return the worker of a workflow's shard; None when the dispatcher does not own the shard."""
        worker = self.workers.get(shard_of(workflow, self.count))
        return None if worker is None or worker.closed else worker

    def _active(self) -> int:
        """Return the number of workflows, in this dispatcher's shards, with a task that is published or runs."""
        return sum(len({node.workflow for node, _ in worker.in_flight}) for worker in self.workers.values())

    def figures(self) -> dict[str, Any]:
        """Return this dispatcher's name, shards, and counts of work, refusals and restarts, for `dispatcher status`."""
        counter = self._ports.metrics.counter
        longest = self._ports.metrics.histogram
        return {
            "owner": self.owner,
            "shards": sorted(self.workers),
            "under_way": sum(len(worker.in_flight) for worker in self.workers.values()),
            "refused": counter(COMMITS_REFUSED).value,
            "late": counter(RESULTS_REFUSED, reason="late").value,
            "unrecorded": counter(RESULTS_REFUSED, reason="unrecorded").value,
            "strange": counter(RESULTS_REFUSED, reason="unknown").value,
            "newer": sum(worker.newer for worker in self.workers.values()),
            "dropped": counter(UNDELIVERABLE, outcome="dropped").value,
            "restarts": self._ports.background.health.deaths.total(),
            "recovery_ms": round(1000 * longest(RECOVERY_SECONDS).highest),
            "freed_ms": round(1000 * longest(LOCKS_FREED_SECONDS).highest),
        }
