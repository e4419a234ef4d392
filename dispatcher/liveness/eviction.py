"""The eviction of a dead, frozen or cut-off process, by closing its connections at the broker.

A broker redelivers a consumer's unsettled deliveries when the connection ends. A killed process's connection ends at
once; a frozen one's ends when the broker misses its heartbeats, after 10 to 15 s. Eviction closes it now.

A process is known by the names of its connections (`broker.port.connection_names`): an agent's id, a dispatcher's owner
name. Both belong to one life of a process, so no other process is ever evicted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from coditect.broker.management import Connection, Management, ManagementUnavailable
from coditect.broker.port import Broker, connection_names
from coditect.broker.topology import MAILBOX_EXPIRES_MS, inbox_binding
from coditect.errors import CoditectError
from coditect.model.ids import AgentId
from coditect.wire import routing
from dispatcher.ledger.keyspace import UNBOUND
from dispatcher.ledger.ownership import leases
from dispatcher.liveness.fleet import Fleet
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads, Transaction, read_counter, write_counter

log = logging.getLogger(__name__)

REASON = "evicted: the control plane took it for dead"
OWNER_SECONDS = 3.0
LISTED_SECONDS = 5.5
"""The longest time after which the broker's management API lists a new connection."""


class Evictor(Protocol):
    """The port that closes the connections of a process at the broker, lists the queues there, and counts messages."""

    async def evict(self, process: str) -> int:
        """Close a process's connections at the broker, and return how many were closed; idempotent.

        A connection that was opened within the last 5 s may be missed: call again.

        Raises:
            Retryable: when the connections cannot be closed now.
        """

    async def queues(self) -> frozenset[str]:
        """Return the names of all queues at the broker.

        Raises:
            Retryable: when the queues cannot be listed now.
        """

    async def messages(self, queue: str) -> int | None:
        """Return the number of all messages in a queue, read up to 10 s ago, including those that await dead-lettering.

        None when there is no such queue, or when its number is not known yet.

        Raises:
            Retryable: when the number cannot be read now.
        """


def evictor(management_url: str | None, vhost: str) -> Evictor | None:
    """Return an evictor through the management API at `CODITECT_MANAGEMENT_URL`; None without that setting.

    The queues that it lists are those in `vhost`.

    Raises:
        SetupError: when the setting is no URL.
    """
    return None if management_url is None else ManagementEvictor(Management(management_url), vhost)


class ManagementEvictor:
    """An evictor through RabbitMQ's management API; concurrent calls share one list of connections."""

    def __init__(self, management: Management, vhost: str) -> None:
        self._management = management
        self._vhost = vhost
        self._turn = asyncio.Lock()
        self._begun = -1.0
        self._connections: tuple[Connection, ...] | ManagementUnavailable = ()
        self._failing = False

    async def evict(self, process: str) -> int:
        """Close a process's connections through the management API, and return how many were closed.

        Raises:
            ManagementUnavailable: when the management API does not answer; retryable.
        """
        names = connection_names(process)
        with self._noted():
            found = [connection for connection in await self._listed() if connection.given_name in names]
            closed = await asyncio.gather(*(self._management.close(connection, reason=REASON) for connection in found))
        return sum(closed)

    async def queues(self) -> frozenset[str]:
        """Return the names of all queues, as the management API lists them.

        Raises:
            ManagementUnavailable: when the management API does not answer; retryable.
        """
        with self._noted():
            return await self._management.queues(self._vhost)

    async def messages(self, queue: str) -> int | None:
        """Return the number of all messages in a queue, as the management API tells; None if it knows no number.

        Raises:
            ManagementUnavailable: when the management API does not answer; retryable.
        """
        return await self._management.messages(self._vhost, queue)

    async def _listed(self) -> tuple[Connection, ...]:
        """Return the broker's connections, from a request made after this call began.

        Concurrent calls share the request, and its failure: the last of many agents is evicted while it counts as dead.

        Raises:
            ManagementUnavailable: when the management API does not answer; retryable.
        """
        now = asyncio.get_running_loop().time
        asked = now()
        async with self._turn:
            if self._begun < asked:
                begun = now()
                try:
                    self._connections = await self._management.connections()
                except ManagementUnavailable as error:
                    self._connections = error
                self._begun = begun
            if isinstance(self._connections, ManagementUnavailable):
                raise self._connections.with_traceback(None)
            return self._connections

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Log when the calls of the management API in a `with` block begin to fail, and when they succeed again."""
        try:
            yield
        except ManagementUnavailable as error:
            if not self._failing:
                log.warning(
                    "No agent can be evicted now: frozen processes hold their work, and dead ones leave queues",
                    extra={"reason": str(error)},
                )
            self._failing = True
            raise
        if self._failing:
            log.info("Eviction works again")
        self._failing = False


async def close_owner(
    evict: Evictor | None, previous: str, *, is_back: Callable[[], Awaitable[bool]] | None = None
) -> int:
    """Close the broker connections of a shard's former owner, which may hold unsettled results; return their number.

    Never fails, but looks twice and may take 12 s: run it beside the take-over. The second look is left out when the
    owner `is_back` by then. Without an evictor, the broker ends the connections when it misses heartbeats, after 10 to
    15 s.
    """
    if evict is None or not previous:
        return 0
    closed = await _closed(evict, previous)
    if closed < len(connection_names(previous)):
        await asyncio.sleep(LISTED_SECONDS)
        if is_back is not None and await is_back():
            return closed
        closed += await _closed(evict, previous)
    if closed:
        log.warning("A former owner was evicted", extra={"owner": previous, "connections": closed})
    return closed


async def _closed(evict: Evictor, previous: str) -> int:
    try:
        async with asyncio.timeout(OWNER_SECONDS):
            return await evict.evict(previous)
    except (CoditectError, TimeoutError) as error:
        log.warning("A former owner cannot be evicted now", extra={"owner": previous, "reason": repr(error)})
        return 0


# The queues that dead processes leave at the broker: how they are found, and removed.

TIDY_PAUSES = (0.0, 1.0, 1.0, 2.0, 5.0, 10.0)
"""The pauses between tries to delete a dead agent's queues: follow-up tasks leave theirs within about a second."""
COUNT_KNOWN_SECONDS = 12.0
"""The time after which the management API knows how many messages an unbound inbox has: it tells old numbers."""
COUNT_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 2.0, 4.0, 4.0)
"""The pauses between tries to count an inbox's messages, till its mailbox is gone and its number of messages known."""
CHECKED_TOGETHER = 50
"""The number of agents whose queues are looked at together: each look opens a channel, and the broker has 2,047."""


class LeftQueues:
    """The finder and remover of dead processes' queues; all that it does is idempotent.

    Without an evictor it is unknown whether an inbox is empty: it stays until it expires.
    """

    def __init__(self, broker: Broker, fleet: Fleet, database: Database, evict: Evictor | None) -> None:
        self._broker = broker
        self._evict = evict
        self._fleet = fleet
        self._database = database
        self._few = asyncio.Semaphore(CHECKED_TOGETHER)

    async def find(self, names: Iterable[str]) -> Mapping[str, frozenset[str]]:
        """Return, by owner, those given queues whose agent the registry lacks or whose dispatcher has no heartbeat.

        Raises:
            Retryable: when the registry or the store does not answer.
        """
        living = {*await self._fleet.registry.leases(), *await self._database.read(leases.beats)}
        found = defaultdict[str, set[str]](set)
        for queue in sorted(names):
            if (owner := routing.owner_of(queue)) and owner not in living:
                found[owner].add(queue)
        return {owner: frozenset(queues) for owner, queues in found.items()}

    async def remove(self, owner: str, queues: Iterable[str]) -> None:
        """Delete the given queues of a dead process, and its queue of replies, unless it is back; never raises.

        The queue of follow-up tasks is deleted once it is empty. An inbox is unbound, and stays: see `remove_inboxes`.
        What remains expires by itself.
        """
        agent, left = AgentId(owner), {*queues, routing.agent_replies(AgentId(owner))}
        for pause in TIDY_PAUSES:  # the first at once: who leads may be gone soon, and nobody else does it
            await asyncio.sleep(pause)
            if await self._is_done(owner, partial(self._are_removed, left, agent)):
                return

    async def remove_inboxes(self, owners: Set[AgentId]) -> None:
        """Delete the empty inboxes of dead agents, unless the agent is back; unbind inboxes that are still bound.

        Tasks that a full queue refused wait in an inbox, where AMQP does not count them, as the management API does,
        late. Since when an inbox is unbound lies in the store, because a dispatcher may not live long enough to wait.

        Raises:
            Retryable: when the registry or the store does not answer.
        """
        since, living = await self._database.read(_unbound), (await self._fleet.registry.leases()).keys()
        now_ms = await self._fleet.registry.now_ms()
        old = {agent for agent, unbound_ms in since.items() if now_ms - unbound_ms >= MAILBOX_EXPIRES_MS}
        await self._database.run(partial(_forget, agents=(old - owners) | (living & since.keys())))
        await self._done(self._is_unbound, owners - (since.keys() - old))
        left = set(owners)
        for pause in COUNT_PAUSES:
            await asyncio.sleep(pause)
            left -= await self._done(self._is_without_inbox, left)
            if not left:
                break

    async def forget(self, agent: AgentId) -> None:
        """Delete the stored instant at which the inbox of an agent that is back was unbound; never raises."""
        await self._is_done(agent, partial(self._is_forgotten, agent))

    async def _is_forgotten(self, agent: AgentId) -> bool:
        await self._database.run(partial(_forget, agents=[agent]))
        return True

    async def _is_unbound(self, agent: AgentId) -> bool:
        """Unbind an agent's inbox, so that no more tasks arrive there, store the time of that, and return True.

        The time is for `remove_inboxes`. It is stored only with an evictor, which alone can tell whether the inbox is
        empty.
        """
        await self._broker.unbind(inbox_binding(agent))
        if self._evict is not None:
            now_ms = await self._fleet.registry.now_ms()
            await self._database.run(lambda tr: tr.set(UNBOUND.pack((agent,)), write_counter(now_ms)))
        return True

    async def _is_without_inbox(self, agent: AgentId) -> bool:
        """Delete a dead agent's inbox once it is surely unbound and empty; return False, to try again, before that.

        True also for an agent that is back. One that has a mailbox may have bound its inbox again since the instant
        that is noted. So may one that has none, when the instant is older than a mailbox without a reader.
        """
        inbox = routing.inbox_queue(agent)
        if await self._fleet.has(agent):
            return True
        if await self._broker.stats(routing.mailbox_queue(agent)) is not None:
            return False
        unbound = await self._database.read(lambda tr: tr.get(UNBOUND.pack((agent,))))
        if unbound is None:
            return False
        unbound_ms = await self._fleet.registry.now_ms() - read_counter(unbound)
        if not COUNT_KNOWN_SECONDS * 1000 <= unbound_ms < MAILBOX_EXPIRES_MS:
            return False
        if self._evict is None or await self._evict.messages(inbox) != 0:
            return False
        await self._broker.delete_queue(inbox)
        return True

    async def _are_removed(self, left: set[str], agent: AgentId) -> bool:
        """Delete those queues of a dead process that may go now; tell whether none is left, or the process is back."""
        if await self._is_back(agent):
            return True
        for queue in sorted(left):
            if await self._is_removed(queue, agent):
                left.remove(queue)
        return not left

    async def _is_back(self, agent: AgentId) -> bool:
        """Tell whether an agent is alive again: it consumes its mailbox, or it is in the registry.

        Its other queues may have no consumer, because all its slots are taken; the registry may not answer it.
        """
        mail = await self._broker.stats(routing.mailbox_queue(agent))
        if mail is not None and mail.consumers:
            return True
        return await self._fleet.has(agent)

    async def _is_removed(self, queue: str, agent: AgentId) -> bool:
        """Delete a queue without consumers, or unbind an inbox; return False, to retry, if it must first run empty."""
        if queue == routing.inbox_queue(agent):
            return await self._is_unbound(agent)
        found = await self._broker.stats(queue)
        if found is None or found.consumers:
            return True
        if queue == routing.mailbox_queue(agent):
            await self._is_unbound(agent)  # before: an agent without a mailbox has no bound inbox
        is_next = queue == routing.next_queue(agent)
        if is_next and found.messages:
            return False
        await self._broker.delete_queue(queue, if_empty=is_next, classic=is_next)
        return True

    async def _done(self, step: Callable[[AgentId], Awaitable[bool]], agents: Iterable[AgentId]) -> Set[AgentId]:
        """Call a step of the removal for many dead agents, some at a time; return those for which it returned True."""
        among = sorted(agents)
        done = await asyncio.gather(*(self._is_done(agent, partial(step, agent)) for agent in among))
        return {agent for agent, is_done in zip(among, done, strict=True) if is_done}

    async def _is_done(self, owner: str, step: Callable[[], Awaitable[bool]]) -> bool:
        """Call a step of the removal of a process's queues; return its result, or False after a `CoditectError`."""
        try:
            async with self._few:
                return await step()
        except CoditectError as error:
            log.debug("A dead process's queues could not be seen", extra={"owner": owner, "reason": str(error)})
            return False


def _unbound(tr: Reads) -> Mapping[AgentId, int]:
    return {AgentId(UNBOUND.unpack(key)[0]): read_counter(value) for key, value in tr.get_range(*UNBOUND.range())}


def _forget(tr: Transaction, *, agents: Iterable[AgentId]) -> None:
    for agent in agents:
        tr.clear(UNBOUND.pack((agent,)))
