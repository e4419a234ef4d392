"""A dispatcher's reaction to dead agents, and to the former owners of the shards that it takes over."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence, Set
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from coditect.errors import CoditectError, Retryable
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord
from coditect.registry.port import Registry
from coditect.telemetry.metrics import AGENTS_LOST, CONNECTIONS_EVICTED, LOCKS_FREED_SECONDS, RECOVERY_SECONDS, Metric
from coditect.wire import routing
from coditect.wire.control import Verb
from dispatcher.coordination import lock_rows
from dispatcher.ledger.commands import AgentFate, Asked
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.ownership import leases
from dispatcher.liveness.eviction import Evictor, close_owner
from dispatcher.liveness.fleet import Fleet, slots_of
from dispatcher.liveness.monitor import Monitor, Roster
from dispatcher.liveness.ping import PingAnswer
from dispatcher.liveness.queue_depths import QueueDepths
from dispatcher.ports import Ports
from dispatcher.shards.in_flight import SILENT_SECONDS
from dispatcher.shards.worker import ShardWorker

log = logging.getLogger(__name__)

DOUBT_PING_SECONDS = 0.5
"""The time between two questions to an agent in doubt."""
MOST_ASKED = 200
"""The largest number of questions to agents in doubt that are open at the same time."""
WITHOUT_MAIL = 4
"""The questions in a row at which an agent in doubt has no mailbox and no registration before it counts as gone."""
BLIND_SECONDS = 5.0
"""The time without a look at the registry after which nobody knows who is registered."""
BLIND_WITHOUT_MAIL = 40
"""As `WITHOUT_MAIL`, while the registry does not answer: a living agent declares its mailbox anew by then."""


@asynccontextmanager
async def watching_agents(
    ports: Ports,
    registry: Registry,
    workers: Mapping[int, ShardWorker],
    *,
    owner: str,
    evict: Evictor | None,
    locks_shard: int,
) -> AsyncIterator[Monitor]:
    """Run the agent monitor in the block: republish dead agents' tasks, free their locks, adapt capacity to the slots.

    The owner of the shard of locks releases the locks of dead agents. A new owner of that shard has every holder of
    locks examined once: an agent that died while no dispatcher was there is in no registry, and would not be missed.
    The owner of any other shard has those agents examined that have begun its tasks.
    """

    def since_seen(metric: Metric) -> Callable[[AgentId], None]:
        """Return the function that records how long ago a dead agent gave its last sign of life."""
        histogram = ports.metrics.histogram(metric)

        def note(gone: AgentId) -> None:
            if (seen_at := monitor.roster.last_seen(gone)) is not None:
                histogram.record(asyncio.get_running_loop().time() - seen_at)

        return note

    def on_look(records: Sequence[AgentRecord]) -> None:
        ports.capacity.set_slots(slots_of(records))
        depths.note(records)
        living = {record.agent_id for record in records}
        holders.look(workers.get(locks_shard), living)
        at_work.look(living)

    monitor = Monitor(
        Fleet(registry, on_look=on_look, metrics=ports.metrics),
        ports.broker,
        ports.events,
        ports.database,
        owner=owner,
        evict=evict,
        on_gone=lambda gone: holders.release(workers.get(locks_shard), gone),
        health=ports.background.health,
    )
    holders = LockHolders(ports, monitor.roster, freed=since_seen(LOCKS_FREED_SECONDS))
    at_work = AtWork(ports, monitor, workers, recovered=since_seen(RECOVERY_SECONDS))
    depths = QueueDepths(ports.broker, ports.metrics, leads=lambda: monitor.leads)
    async with monitor:
        ports.metrics.observe(AGENTS_LOST, lambda: monitor.lost)
        ports.metrics.observe(CONNECTIONS_EVICTED, lambda: monitor.evicted)
        ports.background.keep(depths.run, name="queue depths", critical=False, idle=True)
        ports.background.keep(at_work.settle_doubts, name="settle doubts", critical=False, idle=True)
        yield monitor


class LockHolders:
    """The releaser of the locks of agents that are gone, as soon as this process owns the shard of locks.

    Each process that becomes the owner of the shard of locks has all of them examined once.
    """

    def __init__(self, ports: Ports, roster: Roster, *, freed: Callable[[AgentId], None]) -> None:
        self._ports = ports
        self._roster = roster
        self._freed = freed
        """Called when the last lock of a dead agent is released."""
        self._informed: ShardWorker | None = None
        self._unreleased: set[AgentId] = set()

    def look(self, keeper: ShardWorker | None, living: Set[AgentId]) -> None:
        """Start to release gone agents' locks, if this process owns their shard; a new owner has all holders examined.

        `keeper` is the worker of that shard, or None; then the locks are released later.
        """
        left = set(filter(self._roster.is_gone, self._unreleased - living))
        self._unreleased = left.copy()
        if keeper is None:
            return
        for gone in sorted(left):
            self.release(keeper, gone)
        if keeper is not self._informed:
            self._informed = keeper  # at once: the next look comes before all are read
            self._ports.background.start(self._suspect_all(), name="who holds locks")

    def release(self, keeper: ShardWorker | None, gone: AgentId) -> None:
        """Start to release a dead, evicted agent's locks by the worker of their shard; if that is None, do so later."""
        if keeper is None:
            self._unreleased.add(gone)
        else:
            self._unreleased.discard(gone)
            self._ports.background.start(self._release(keeper, gone), name=f"locks of {gone}")

    async def _suspect_all(self) -> None:
        try:
            after = ""
            while found := await self._ports.database.read(partial(lock_rows.holders, after=after)):
                self._roster.suspect(found, asyncio.get_running_loop().time())
                after = found[-1]
        except Retryable as error:
            log.debug("Who holds locks is not known yet", extra={"reason": str(error)})
            self._informed = None

    async def _release(self, keeper: ShardWorker, gone: AgentId) -> None:
        """Release a dead agent's locks, some at a time; stop if the shard gets another owner, or the agent is back."""
        more, released = True, 0
        while more and self._roster.is_gone(gone):  # what an agent that is back has acquired since is its own
            try:
                page = await keeper.ask(Asked(Verb.LOCK_RELEASE, {"agent": gone, "reason": "its agent is gone"}))
            except Retryable as error:
                log.debug("A dead agent's locks are left to their shard's next owner", extra={"reason": str(error)})
                self._unreleased.add(gone)
                return
            more, released = page["more"], released + page["released"]
        if released:
            self._freed(gone)


class AtWork:
    """The agents that have begun tasks of this process's shards; when one is gone, its tasks are published again.

    When another agent has taken a task over already, because the broker delivered it again, the agent may have died of
    the task or only have lost its connection. It is asked until it answers, or is gone, and the ledger records which.
    """

    def __init__(
        self,
        ports: Ports,
        monitor: Monitor,
        workers: Mapping[int, ShardWorker],
        *,
        recovered: Callable[[AgentId], None],
    ) -> None:
        self._broker, self._background = ports.broker, ports.background
        self._roster, self._pings = monitor.roster, monitor.pings
        self._workers = workers
        self._recovered = recovered
        """Called when the tasks that a dead agent had begun are published again, or known to be with other agents."""
        self._missed: set[AgentId] = set()
        self._losing: set[AgentId] = set()
        self._asking: set[AgentId] = set()
        self._room = asyncio.Semaphore(MOST_ASKED)
        self._living: Set[AgentId] = frozenset()
        self._looked_at = asyncio.get_running_loop().time()
        self._without_mail: Counter[AgentId] = Counter()
        """How often an agent in doubt, which did not answer since, had no mailbox and was not in the registry."""

    def look(self, living: Set[AgentId]) -> None:
        """Have each agent that has tasks but is not in the registry examined once; publish a dead agent's tasks again.

        Of a task that was begun after the agent was last asked, its silence proves nothing: the agent is asked again.
        It may be back at the broker, though not yet in the registry; or the grant came after its death.
        """
        now = asyncio.get_running_loop().time()
        self._living, self._looked_at = living, now
        in_doubt = self._in_doubt()
        begun = set[AgentId]().union(*(worker.in_flight.agents for worker in self._workers.values()))
        missing = (begun | in_doubt) - living
        missed, self._missed = self._missed, missing
        self._roster.suspect(missing - missed, now)
        for agent in filter(self._roster.is_gone, sorted(missing & begun - self._losing)):
            proved_at = self._roster.proved_at(agent)
            if not any(worker.in_flight.lost_with(agent, proved_at) for worker in self._workers.values()):
                self._roster.doubt(agent, now)
                continue
            self._losing.add(agent)
            self._background.start(self._lose(agent), name=f"repeat the work of {agent}")

    async def settle_doubts(self) -> None:
        """Ask the agents in doubt every half second whether they live, for ever; the registry need not answer."""
        while True:
            for agent in sorted(self._in_doubt() - self._asking):
                self._asking.add(agent)
                self._background.start(self._find_out(agent), name=f"does {agent} live")
            await asyncio.sleep(DOUBT_PING_SECONDS)

    def _in_doubt(self) -> set[AgentId]:
        return set[AgentId]().union(*(worker.in_flight.in_doubt() for worker in self._workers.values()))

    async def _lose(self, gone: AgentId) -> None:
        """Have the tasks that a dead agent had begun published again, unless another agent has taken them over.

        While a shard's results queue is not empty, or its former owner still consumes it, the agent's last results may
        wait unread: that is waited for, but not for longer than any silent task is.
        """
        ends = list[Any]()
        try:
            for worker in [worker for worker in self._workers.values() if gone in worker.in_flight.agents]:
                silent_seconds = 0.0 if await self._has_heard_all(worker) else SILENT_SECONDS
                if not self._roster.is_gone(gone):
                    return
                heard_until = min(asyncio.get_running_loop().time() - silent_seconds, self._roster.proved_at(gone))
                answers = [worker.ask(lost) for lost in worker.in_flight.lost_with(gone, heard_until)]
                ends += await asyncio.gather(*answers, return_exceptions=True)  # until then no look repeats them
            if not all(isinstance(end, BaseException) for end in ends):
                self._recovered(gone)
        finally:
            self._losing.discard(gone)

    async def _find_out(self, agent: AgentId) -> None:
        """Record in the ledger, for each task that an agent in doubt had, whether the agent lives or is gone.

        If neither is known yet, it is asked again.
        """
        try:
            doubts = [
                (worker, node_key)
                for worker in self._workers.values()
                for node_key, agents in worker.in_flight.doubted.items()
                if agent in agents
            ]
            answers = await asyncio.gather(*(self._ask(agent, node_key) for _, node_key in doubts))
            lives = self._lives(agent, answers)
            if lives is None:
                return
            asked = {worker.shard: worker for worker, _ in doubts}
            heard_all = {shard: await self._has_heard_all(worker) for shard, worker in asked.items()}
            fates = [
                (worker, AgentFate(key, agent, lives, answer is PingAnswer.PONG or not heard_all[worker.shard]))
                for (worker, key), answer in zip(doubts, answers, strict=True)
            ]
            await asyncio.gather(*(self._settle(worker, fate) for worker, fate in fates))
            if fates and not lives:
                self._recovered(agent)
        finally:
            self._asking.discard(agent)

    async def _ask(self, agent: AgentId, node_key: NodeKey) -> PingAnswer:
        async with self._room:
            return await self._pings.ask(agent, task_id=node_key.task_id)

    async def _settle(self, worker: ShardWorker, fate: AgentFate) -> None:
        with suppress(Retryable):
            await worker.ask(fate)
            worker.in_flight.settle(fate.node_key, fate.agent)

    def _lives(self, agent: AgentId, answers: Collection[PingAnswer]) -> bool | None:
        """Tell by an agent's answers to pings whether it lives; None while that is not known.

        It is gone by the monitor, or when it has no mailbox and is not in the registry for some questions in a row: a
        dispatcher that began after the agent's end has never seen it. While the registry does not answer, a mailbox
        that stays missing proves it: who lives declares its mailbox again.
        """
        blind = asyncio.get_running_loop().time() - self._looked_at > BLIND_SECONDS
        if PingAnswer.PONG in answers or PingAnswer.WITHOUT in answers:
            self._without_mail.pop(agent, None)
            return True
        if PingAnswer.NO_MAIL in answers and (blind or agent not in self._living):
            self._without_mail[agent] += 1
        else:
            self._without_mail.pop(agent, None)
        if self._roster.is_gone(agent) or self._without_mail[agent] >= (BLIND_WITHOUT_MAIL if blind else WITHOUT_MAIL):
            self._without_mail.pop(agent, None)
            return False
        return None

    async def _has_heard_all(self, worker: ShardWorker) -> bool:
        try:
            results = await self._broker.stats(routing.results_queue(worker.shard))
        except CoditectError:
            return False
        return results is not None and not results.messages and results.consumers <= 1


class Predecessors:
    """The evictor of shards' former owners from the broker, in the background, once at a time for each owner."""

    def __init__(self, ports: Ports, evict: Evictor | None) -> None:
        self._evict = evict
        self._background, self._database = ports.background, ports.database
        self._closing: set[str] = set()

    async def evict(self, previous: str) -> None:
        """Start to close a former shard owner's broker connections in the background, unless that is under way."""
        if previous not in self._closing:
            self._closing.add(previous)
            closing = close_owner(self._evict, previous, is_back=partial(self._lives, previous))
            task = self._background.start(closing, name=f"evict {previous}")
            task.add_done_callback(lambda _: self._closing.discard(previous))

    async def _lives(self, owner: str) -> bool:
        """Tell whether a shard's former owner is alive, or may be, so that its broker connections must stay open."""
        try:
            return owner in await self._database.read(leases.beats)
        except Retryable:
            return True
