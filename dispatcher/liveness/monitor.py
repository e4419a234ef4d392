"""The monitor, which detects dead, frozen and cut-off agents, and has other agents continue their work.

Every dispatcher watches; the one that holds the lease ("leader", "monitor") also acts on the broker. An agent whose
lease in the registry is about to end is pinged. Only when the lease did end *and* the ping stayed unanswered for a
second is the agent gone: a registry that was wiped, hangs or cannot be reached is no proof, nor is a broker that does
not answer. Then, in this order:

1. the leader evicts the agent: its connections are closed, so that its unsettled deliveries are redelivered now, and
   not when the broker misses its heartbeats. A killed agent's are closed already.
2. `on_gone` is called, on every dispatcher, for the work that no other agent has taken over by then.
3. the leader publishes `agent.offline` and removes the agent's queues once they are empty.

A leader may die amid that, and an agent may die while no dispatcher leads: every minute the leader also examines the
agents that have queues and are not in the registry. What such agents, and dispatchers without a beat, left is removed.

An agent that gets no answer from the broker reports that in the registry, as long as the registry answers. If the agent
does not answer a ping either, while the broker answers the dispatcher, its connections are closed at once and its
deliveries go to others. Whether the agent is gone follows from its lease, as always.

A frozen agent that continues finds its connections gone, connects and registers again, and takes work as before. Its
later reports about the old work are late: a fence refuses them, or the client has its answer already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self

from coditect.aio.supervisor import Health, Supervisor
from coditect.broker.port import Broker
from coditect.errors import CoditectError, RegistryUnavailable, Retryable
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.wire import routing
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.ownership.leases import Lease
from dispatcher.liveness.eviction import Evictor, LeftQueues
from dispatcher.liveness.fleet import Fleet
from dispatcher.liveness.ping import PingAnswer, Pings
from dispatcher.store.port import Database
from dispatcher.store.transaction import Transaction

log = logging.getLogger(__name__)

LEASE: leases.Name = ("leader", "monitor")
FLEET_CHECK_SECONDS = 0.5
RELIEF_SECONDS = 0.5
"""The time in which an agent that reports to be cut off from the broker must answer a ping."""
EVICTION_PAUSES = (0.05, 0.2, 0.5, 1.0, 1.0, 1.0, 1.5)
"""The pauses between tries to evict an agent, since the broker's management API lists a new connection late."""
SWEEP_SECONDS = 60.0
"""The time between two looks of the leader for queues that dead processes have left at the broker."""
SWEEP_RETRY_SECONDS = 5.0
"""The time after which the leader tries again to look for such queues."""
REGISTER_SECONDS = 1.5
"""The time in which a living agent registers again after the registry was wiped: a beat, and some slack."""


class Monitor:
    """The monitor in one dispatcher, which watches the leases of all agents, and reports agents that are gone.

    `owner` is this dispatcher's name in the store; until the name's lease is renewed there, and while another
    dispatcher leads, this one only watches. Without `evict` frozen agents keep their connections.
    """

    def __init__(
        self,
        fleet: Fleet,
        broker: Broker,
        events: Events,
        database: Database,
        *,
        owner: str,
        evict: Evictor | None,
        on_gone: Callable[[AgentId], None],
        health: Health | None = None,
    ) -> None:
        self._fleet = fleet
        self._broker = broker
        self._events = events
        self._database = database
        self._owner = owner
        self._evict = evict
        self._on_gone = on_gone
        self._left = LeftQueues(broker, fleet, database, evict)
        self.roster = Roster()
        """The known agents, living and dead."""
        self.pings = Pings(broker, name=f"monitor-{owner}")
        self._background = Supervisor(health)
        self._lease: Lease | None = None
        self._sweep_at = self._now()
        self._offline: set[AgentId] = set()
        """The agents that report in the registry that the broker does not answer them."""
        self.lost = 0
        """The number of agents that this monitor has reported as gone."""
        self.evicted = 0
        """The number of agents' connections that this monitor has closed at the broker."""

    @property
    def leads(self) -> bool:
        """Tell whether this monitor holds the lease to evict agents and to delete their queues."""
        return self._lease is not None

    async def __aenter__(self) -> Self:
        if self._evict is None:
            log.warning(
                "Frozen agents keep their tasks until the broker misses their heartbeats, 10 to 15 s",
                extra={"fix": "set CODITECT_MANAGEMENT_URL to RabbitMQ's management API"},
            )
        await self.pings.__aenter__()
        keep = partial(self._background.keep, idle=True)
        keep(partial(self._every_look, self._look), name="watch agents", critical=True)
        keep(partial(self._every_look, self._campaign), name="stand for the lead", critical=True)  # beside a slow store
        if self._evict is not None:
            keep(partial(self._every_look, self._tidy), name="tidy", critical=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as stack:  # each is done, whatever comes of the one before
            stack.push_async_callback(self._resign)
            stack.push_async_exit(self.pings)
            stack.push_async_callback(self._background.close)

    async def _every_look(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await step()
            await asyncio.sleep(FLEET_CHECK_SECONDS)

    async def _tidy(self) -> None:
        """Have the queues of dead processes removed every minute while this monitor leads, one sweep at a time."""
        if self._evict is not None and self.leads and self._now() >= self._sweep_at:
            self._sweep_at = self._now() + SWEEP_SECONDS
            await self._sweep(self._evict)

    async def _look(self) -> None:
        try:
            records = await self._fleet.look()
        except RegistryUnavailable as error:
            log.debug("The registry does not answer: no agent is taken for dead", extra={"reason": str(error)})
            return
        now = self._now()
        for agent in self.roster.note(records, now):
            self._greet(agent)
        offline = {record.agent_id for record in records if record.load.status is AgentStatus.OFFLINE}
        for agent in sorted(offline - self._offline):
            self._background.start(self._relieve(agent), name=f"relieve {agent}")
        self._offline = offline
        for entry in self.roster.overdue(now):
            entry.examined = True
            self._background.start(self._examine(entry), name=f"examine {entry.agent}")

    async def _sweep(self, evict: Evictor) -> None:
        """Remove queues of unconnected processes that the registry and the store lack both now and 1.5 s later.

        The agents among them are examined. Their mailboxes stay until they count as gone: the silence there proves it.
        """
        try:
            names = await evict.queues()
            found = await self._left.find(names)
            suspects = {owner for owner in found if not await self._is_connected(AgentId(owner))}
            self.roster.suspect(suspects, self._now())
            await asyncio.sleep(REGISTER_SECONDS)
            left = await self._left.find(names)
            for owner in sorted(suspects & left.keys()):
                if queues := left[owner] - self._kept(AgentId(owner)):
                    self._background.start(self._left.remove(owner, queues), name=f"tidy {owner}")
            inboxes = {
                agent for agent in map(AgentId, suspects & left.keys()) if routing.inbox_queue(agent) in left[agent]
            }
            await self._left.remove_inboxes(inboxes)
        except Retryable as error:
            self._sweep_at = self._now() + SWEEP_RETRY_SECONDS
            log.debug("The queues of dead processes could not be removed", extra={"reason": str(error)})

    def _kept(self, agent: AgentId) -> Set[str]:
        """Return which queues of a missing agent stay for now: the inbox and, until it counts as dead, the mailbox."""
        inbox = routing.inbox_queue(agent)
        return {inbox} if self.roster.is_gone(agent) else {inbox, routing.mailbox_queue(agent)}

    def _greet(self, agent: AgentId) -> None:
        log.info("An agent that was taken for dead is back", extra={"agent_id": agent})
        if self.leads:
            self._events.emit("agent.online", subject=agent, back=True)
        self._background.start(self._left.forget(agent), name=f"forget {agent}")

    async def _relieve(self, agent: AgentId) -> None:
        """As the leader, evict an agent that reports to be cut off from the broker and answers no ping.

        Others then get its tasks. The agent does not count as dead; without a connection at the broker nothing is
        closed.
        """
        closed = 0
        for pause in EVICTION_PAUSES:
            if not self.leads or self._evict is None or agent not in self._offline:
                break
            answer = await self.pings.ask(agent, within_seconds=RELIEF_SECONDS)
            if answer is PingAnswer.SILENCE and await self._is_connected(agent):
                closed += await self._close_connections(agent, self._evict)
            await asyncio.sleep(pause)
            if answer is PingAnswer.PONG or (closed and not await self._is_connected(agent)):
                break
        if closed:
            facts = {"agent_id": agent, "connections": closed}
            log.warning("The broker does not answer an agent, as that says; its tasks go to others", extra=facts)

    # -- is it dead? ------------------------------------------------------------------------------------

    async def _examine(self, entry: RosterEntry) -> None:
        asked_at = self._now()
        try:
            answer = await self.pings.ask(entry.agent)
            if answer is PingAnswer.PONG:
                entry.grant(self._now())
                if entry.reported:
                    entry.reported = False
                    self._greet(entry.agent)
            elif answer is not PingAnswer.UNKNOWN and await self._has_lapsed(entry) and self._is_proof(answer, entry):
                await self._lose(entry, answer, asked_at)
        finally:
            entry.examined = False

    async def _has_lapsed(self, entry: RosterEntry) -> bool:
        """Wait for an agent's lease to end, and tell if it was not renewed; False if the registry does not answer."""
        lapses_at = entry.lapses_at
        await asyncio.sleep(lapses_at - self._now())
        try:
            record = await self._fleet.registry.get(entry.agent)
        except RegistryUnavailable:
            return False
        if record is not None:
            self.roster.note_one(record, self._now())
        return entry.lapses_at == lapses_at and (record is None or record.lease_ms <= 0)

    def _is_proof(self, answer: PingAnswer, entry: RosterEntry) -> bool:
        """Tell whether a ping's answer proves an agent's end: silence, or a mailbox missing twice or during a drain.

        Of a name that the registry never listed it proves nothing: a client has no mailbox either.
        """
        if answer is PingAnswer.SILENCE or entry.draining or entry.without_mail:
            return True
        if not entry.listed:
            self.roster.forget(entry.agent)
            return False
        entry.without_mail = True
        entry.grant(self._now())
        return False

    # -- then ... ---------------------------------------------------------------------------------------

    async def _lose(self, entry: RosterEntry, answer: PingAnswer, asked_at: float) -> None:
        agent = entry.agent
        self.roster.strike(agent, asked_at)
        closed = await self._cut_off(agent)
        if await self._fleet.has(agent):
            return  # it registered meanwhile, and holds what it has acquired since
        self._on_gone(agent)
        if entry.reported:
            return  # and nothing was heard of it since
        self.lost += 1
        facts = {"reason": "silent" if answer is PingAnswer.SILENCE else "left", "connections": closed}
        level = logging.WARNING if answer is PingAnswer.SILENCE else logging.INFO
        log.log(level, "An agent is gone", extra={"agent_id": agent, **facts})
        if self.leads:
            self._events.emit("agent.offline", subject=agent, **facts)
            self._background.start(self._left.remove(agent, routing.own_queues(agent)), name=f"tidy {agent}")

    async def _cut_off(self, agent: AgentId) -> int:
        """Evict a dead agent, or wait until the leader did; return how many connections this monitor closed.

        The broker then requeues the agent's tasks. A connected agent has a consumer on its mailbox.
        """
        closed = 0
        for number, pause in enumerate(EVICTION_PAUSES):
            if not await self._is_connected(agent) or (number and await self._fleet.has(agent)):
                break  # what is connected then is its next life, which holds nothing of the one before
            if self._evict is None:
                break
            if self.leads:
                closed += await self._close_connections(agent, self._evict)
            await asyncio.sleep(pause)
        return closed

    async def _is_connected(self, agent: AgentId) -> bool:
        try:
            mailbox = await self._broker.stats(routing.mailbox_queue(agent))
        except CoditectError:
            return True  # for all we know
        return mailbox is not None and mailbox.consumers > 0

    async def _close_connections(self, agent: AgentId, evict: Evictor) -> int:
        """Close an agent's connections at the broker by the evictor, and return how many were closed.

        0 while the management API does not answer.
        """
        try:
            closed = await evict.evict(agent)
        except CoditectError as error:
            log.debug("An agent could not be evicted yet", extra={"agent_id": agent, "reason": str(error)})
            return 0
        self.evicted += closed
        return closed

    # -- who acts? --------------------------------------------------------------------------------------

    async def _campaign(self) -> None:
        """Acquire or renew the lease to act for the whole fleet, unless another dispatcher holds the lease.

        Two leaders for a moment do no harm, since all acts are idempotent.
        """
        led = self.leads
        try:
            self._lease = await self._database.run(lambda tr: leases.acquire(tr, LEASE, self._owner))
        except CoditectError as error:
            self._lease = None
            log.debug("Who watches over the agents is not known", extra={"reason": str(error)})
        if self.leads is not led:
            self._sweep_at = self._now()
            log.info("Acts for agents that are gone" if self.leads else "Another acts for agents that are gone")

    async def _resign(self) -> None:
        """Release the lease to act for the whole fleet, even when the commit that took the lease was canceled."""
        self._lease = None
        try:
            await self._database.run(self._release)
        except CoditectError as error:
            log.debug("The monitor's lease lapses by itself", extra={"reason": str(error)})

    def _release(self, tr: Transaction) -> None:
        lease = leases.read(tr, LEASE)
        if lease.owner == self._owner:
            leases.release(tr, lease)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


# The list of known agents, with the time until which each agent surely counts as living; no I/O, no clock.
#
# An agent lives at least as long as the lease that was last seen of it, even if the registry changes meanwhile: a wiped
# registry lists no agent, and all are back with the next heartbeat, long before a lease ends. Time in which the
# observer did not look does not count: a first look, or one after a pause, grants every agent a full lease.

MONITOR_PAUSED_SECONDS = 1.5
"""The seconds between two looks at the registry from which the monitor counts as having paused."""
EARLY_PING_SECONDS = 1.5
"""The time before the end of an agent's lease at which the monitor pings an agent that has not renewed it."""
SUSPECT_SECONDS = 3.0
"""The lease that is granted to an agent that may have died while no dispatcher watched."""
GONE_SECONDS = 3_600.0
"""The time for which a dead agent's id is kept, so that the agent's return is noticed."""
MOST_GONE = 10_000


@dataclass(slots=True)
class RosterEntry:
    """The known facts about one living agent, such as the end of its lease."""

    agent: AgentId
    lapses_at: float
    """The time until which the agent counts as living, even if it is silent."""
    lease_seconds: float
    """The longest remaining lease that the registry has shown for the agent."""
    draining: bool = False
    examined: bool = False
    """Whether the monitor is pinging the agent to find out if it lives."""
    without_mail: bool = False
    """Whether the agent's mailbox queue has been found missing once."""
    reported: bool = False
    """Whether the agent was reported as gone, and nothing was heard of it since."""
    listed: bool = True
    """Whether the registry has listed the agent since this dispatcher began; else it may be no agent at all."""

    @property
    def overdue_at(self) -> float:
        """The time by which the agent should have renewed its lease, shortly before the lease ends."""
        return self.lapses_at - min(EARLY_PING_SECONDS, self.lease_seconds / 2)

    def grant(self, now: float) -> None:
        """Count the agent as living for one lease time from now."""
        self.lapses_at = max(self.lapses_at, now + self.lease_seconds)


class Roster:
    """The agents that a monitor knows, with the ends of their leases in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._entries: dict[AgentId, RosterEntry] = {}
        self._gone: dict[AgentId, tuple[float, float | None]] = {}
        """When each dead agent was asked in vain, and its last sign of life, if the registry ever listed it."""
        self._looked_at: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, records: Iterable[AgentRecord], now: float) -> list[AgentId]:
        """Record the agents that the registry lists, and return the ids of dead ones that are back.

        At the first call, and after a pause in the calls, all known agents count as living for a full lease.
        """
        back = [record.agent_id for record in records if self.note_one(record, now)]
        if self._looked_at is None or now - self._looked_at > MONITOR_PAUSED_SECONDS:
            for entry in self._entries.values():
                entry.grant(now)
        self._looked_at = now
        self._gone = {agent: times for agent, times in self._gone.items() if now - times[0] < GONE_SECONDS}
        return back

    def note_one(self, record: AgentRecord, now: float) -> bool:
        """Record one agent's lease from the registry; tell whether the agent counted as dead and is back."""
        if record.lease_ms <= 0:
            return False
        left = record.lease_ms / 1_000
        entry = self._entries.setdefault(record.agent_id, RosterEntry(record.agent_id, now + left, left))
        entry.lapses_at = max(entry.lapses_at, now + left)
        entry.lease_seconds = max(entry.lease_seconds, left) if entry.listed else left
        entry.draining = record.load.status is AgentStatus.DRAINING
        is_back = self._gone.pop(record.agent_id, None) is not None or entry.reported
        entry.without_mail, entry.reported, entry.listed = False, False, True
        return is_back

    def suspect(self, names: Iterable[str], now: float) -> None:
        """Have unknown agents that left queues, locks or tasks behind examined soon: they may have died unseen.

        One that answers lives, and one without a mailbox is no agent: nothing follows for either of them.
        """
        for agent in map(AgentId, sorted(names)):
            if agent not in self._entries and agent not in self._gone:
                lapses_at = now + SUSPECT_SECONDS
                self._entries[agent] = RosterEntry(agent, lapses_at, SUSPECT_SECONDS, listed=False)

    def is_gone(self, agent: AgentId) -> bool:
        """Tell whether an agent counts as dead: its lease ended, and it answered no ping. It does so for an hour."""
        return agent in self._gone

    def proved_at(self, agent: AgentId) -> float:
        """Return when a dead agent was asked without an answer: that proves nothing of later."""
        return self._gone[agent][0]

    def doubt(self, agent: AgentId, now: float) -> None:
        """Count a dead agent as living that may have begun work since it was asked; it is asked again at once."""
        del self._gone[agent]
        self._entries[agent] = RosterEntry(agent, now, SUSPECT_SECONDS, reported=True)

    def last_seen(self, agent: AgentId) -> float | None:
        """Return when a dead agent last gave a sign of life; None when this dispatcher has seen none."""
        return self._gone.get(agent, (0.0, None))[1]

    def forget(self, agent: AgentId) -> None:
        """Stop watching the given name, because it seems to belong to no agent."""
        self._entries.pop(agent, None)

    def overdue(self, now: float) -> list[RosterEntry]:
        """Return the entries of agents that should have renewed their leases by now and are not being pinged yet."""
        return [entry for entry in self._entries.values() if entry.overdue_at <= now and not entry.examined]

    def strike(self, agent: AgentId, asked_at: float) -> None:
        """Move an agent from the living to the dead agents, because it did not answer when it was asked."""
        entry = self._entries.pop(agent, None)
        was_seen = entry is not None and entry.listed and not entry.reported
        seen_at = entry.lapses_at - entry.lease_seconds if entry is not None and was_seen else None
        self._gone[agent] = asked_at, seen_at
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]
