"""The queues that dead processes leave at the broker: how they are found, and removed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from functools import partial

from coditect.broker.port import Broker
from coditect.broker.topology import MAILBOX_EXPIRES_MS, inbox_binding
from coditect.errors import CoditectError
from coditect.model.ids import AgentId
from coditect.wire import routing
from dispatcher.ledger.keyspace import UNBOUND
from dispatcher.ledger.ownership import leases
from dispatcher.liveness.eviction import Evictor
from dispatcher.liveness.fleet import Fleet
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads, Transaction, read_counter, write_counter

log = logging.getLogger(__name__)

TIDY_PAUSES = (0.0, 1.0, 1.0, 2.0, 5.0, 10.0)
"""The pauses between tries to delete a dead agent's queues: follow-up tasks leave theirs within about a second."""
KNOWN_SECONDS = 12.0
"""The time after which the management API knows how many messages an unbound inbox has: it tells old numbers."""
COUNT_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0, 2.0, 4.0, 4.0)
"""The pauses between tries to count an inbox's messages, till its mailbox is gone and its number of messages known."""
FEW = 50
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
        self._few = asyncio.Semaphore(FEW)

    async def find(self, names: Iterable[str]) -> Mapping[str, frozenset[str]]:
        """Return, by owner, those given queues whose agent the registry lacks or whose dispatcher has no heartbeat.

        Raises:
            Retryable: when the registry or the store does not answer.
        """
        living = {*await self._fleet.living(), *await self._database.read(leases.beats)}
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
        agent, left = AgentId(owner), {*queues, f"reply.{owner}"}
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
        since, living = await self._database.read(_unbound), await self._fleet.living()
        now_ms = await self._fleet.now_ms()
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
            now_ms = await self._fleet.now_ms()
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
        if unbound is None or not _is_known(read_counter(unbound), await self._fleet.now_ms()):
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


def _is_known(unbound_ms: int, now_ms: int) -> bool:
    return KNOWN_SECONDS * 1000 <= now_ms - unbound_ms < MAILBOX_EXPIRES_MS


def _forget(tr: Transaction, *, agents: Iterable[AgentId]) -> None:
    for agent in agents:
        tr.clear(UNBOUND.pack((agent,)))
