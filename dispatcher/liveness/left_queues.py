"""The queues that dead processes leave at the broker: how they are found, and removed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping

from coditect.broker.port import Broker
from coditect.errors import CoditectError
from coditect.model.ids import AgentId
from coditect.wire import routing
from dispatcher.ledger.ownership import leases
from dispatcher.liveness.fleet import Fleet
from dispatcher.store.port import Database

log = logging.getLogger(__name__)

TIDY_PAUSES = (0.0, 1.0, 1.0, 2.0, 5.0, 10.0)
"""The pauses between tries to delete a dead agent's queues: tasks leave an inbox within about a second."""


class LeftQueues:
    """The finder and remover of dead processes' queues; all that it does is idempotent."""

    def __init__(self, broker: Broker, fleet: Fleet, database: Database) -> None:
        self._broker = broker
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

        Queues of tasks are deleted once they are empty. Those that still remain expire by themselves.
        """
        agent, left = AgentId(owner), [*queues, f"reply.{owner}"]
        for pause in TIDY_PAUSES:  # the first at once: who leads may be gone soon, and nobody else does it
            await asyncio.sleep(pause)
            try:
                if await self._is_back(agent):
                    return
                for queue in tuple(left):
                    if await self._is_removed(queue, classic=queue == routing.next_queue(agent)):
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

    async def _is_removed(self, queue: str, *, classic: bool) -> bool:
        """Delete a queue that has no consumers; return False, to try again, if the queue must empty first."""
        found = await self._broker.stats(queue)
        if found is None or found.consumers:
            return True
        if_empty = routing.hands_on(queue)
        if if_empty and found.messages:
            return False
        await self._broker.delete_queue(queue, if_empty=if_empty, classic=classic)
        return True
