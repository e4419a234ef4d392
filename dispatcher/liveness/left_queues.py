"""The queues that dead processes leave at the broker: how they are found, and removed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping

from coditect.broker.port import Broker
from coditect.broker.topology import inbox_binding
from coditect.errors import CoditectError
from coditect.model.ids import AgentId
from coditect.wire import routing
from dispatcher.ledger.ownership import leases
from dispatcher.liveness.eviction import Evictor
from dispatcher.liveness.fleet import Fleet
from dispatcher.store.port import Database

log = logging.getLogger(__name__)

TIDY_PAUSES = (0.0, 1.0, 1.0, 2.0, 5.0, 10.0)
"""The pauses between tries to delete a dead agent's queues: follow-up tasks leave theirs within about a second."""
KNOWN_SECONDS = 12.0
"""The time after which the management API knows how many messages an inbox had at the beginning of that time."""


class LeftQueues:
    """The finder and remover of dead processes' queues; all that it does is idempotent."""

    def __init__(self, broker: Broker, fleet: Fleet, database: Database, evict: Evictor | None) -> None:
        self._broker = broker
        self._evict = evict
        self._fleet = fleet
        self._database = database

    async def find(self, names: Iterable[str]) -> Mapping[str, frozenset[str]]:
        """Return the queues of agents that are not in the registry, and of dispatchers without a beat, by owner.

        Raises:
            Retryable: when the registry or the store does not answer.
        """
        living = {*await self._fleet.living(), *await self._database.read(leases.beats)}
        found = defaultdict[str, set[str]](set)
        for queue in names:
            if (owner := routing.owner_of(queue)) and owner not in living:
                found[owner].add(queue)
        return {owner: frozenset(queues) for owner, queues in found.items()}

    async def remove(self, owner: str, queues: Iterable[str]) -> None:
        """Delete a dead process's queues and its queue of replies, unless the process is back; never raises.

        Queues of tasks are deleted once they are empty, an inbox only when the management API says so. What remains
        expires by itself.
        """
        agent, left, begun = AgentId(owner), [*queues, f"reply.{owner}"], None
        for pause in TIDY_PAUSES:  # the first at once: who leads may be gone soon, and nobody else does it
            await asyncio.sleep(pause)
            try:
                if await self._is_back(agent):
                    return
                if routing.inbox_queue(agent) in left:
                    await self._broker.unbind(inbox_binding(agent))
                begun = begun or asyncio.get_running_loop().time()
                for queue in tuple(left):
                    if await self._is_removed(queue, agent, begun):
                        left.remove(queue)
            except CoditectError as error:
                log.debug("A dead process's queues could not be seen", extra={"owner": owner, "reason": str(error)})
            if not left:
                return

    async def _is_back(self, agent: AgentId) -> bool:
        """Tell whether an agent is in the registry again, or reads its mailbox while the registry does not answer it.

        It may not consume its other queues: all its slots are taken.
        """
        mail = await self._broker.stats(routing.mailbox_queue(agent))
        if mail is not None and mail.consumers:
            return True
        return await self._fleet.has(agent)

    async def _is_removed(self, queue: str, agent: AgentId, unbound_at: float) -> bool:
        """Delete a queue that has no consumers; return False, to try again, if the queue must empty first."""
        found = await self._broker.stats(queue)
        if found is None or found.consumers:
            return True
        if queue == routing.inbox_queue(agent) and not await self._is_handed_on(queue, unbound_at):
            return False
        is_next = queue == routing.next_queue(agent)
        if is_next and found.messages:
            return False
        await self._broker.delete_queue(queue, if_empty=is_next, classic=is_next)
        return True

    async def _is_handed_on(self, inbox: str, unbound_at: float) -> bool:
        """Tell whether all tasks of an unbound inbox have reached another queue.

        Those that a full queue refused wait in the inbox, where AMQP does not count them, as the management API does.
        """
        if self._evict is None or asyncio.get_running_loop().time() < unbound_at + KNOWN_SECONDS:
            return False
        return await self._evict.messages(inbox) == 0
