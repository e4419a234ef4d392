"""Dispatchers that were stopped inside a transaction of a store in a file: they hold its lock until they are ended.

SQLite's lock is the process's, so a dispatcher that stands still inside a transaction keeps all others from writing:
nobody can take its shards over, and the leases of all seem to lapse. Who holds the lock, the operating system tells; a
dispatcher's name tells its process. When both agree, and its lease lapsed `GRACE_MS` ago, it is ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from dispatcher.layers.leases import TTL_MS, Pulse
from dispatcher.store.port import Holder

log = logging.getLogger(__name__)

GRACE_MS = 500
NAME = "dispatcher"


class Stopped:
    """Ends who holds the lock and does not live any more, as far as one observer sees."""

    def __init__(self, holder: Callable[[], Holder | None]) -> None:
        """`holder` tells who holds the lock now: `Database.holder`."""
        self._holder = holder
        self.ended = 0
        """Processes that were ended from here."""

    async def look(self, pulses: Iterable[Pulse]) -> None:
        """One look, while a transaction of ours does not come through."""
        holder = self._holder()
        if holder is None or not has_lapsed(holder.pid, pulses):
            return
        if await asyncio.to_thread(holder.end):
            self.ended += 1
            log.warning(
                "A dispatcher that stood still inside a transaction was ended: it held the store's lock",
                extra={"pid": holder.pid, "started": holder.started},
            )


def has_lapsed(pid: int, pulses: Iterable[Pulse]) -> bool:
    """Whether the process is a dispatcher whose lease lapsed long enough ago."""
    return any(pulse.owner.startswith(f"{NAME}-{pid}-") and pulse.has_lapsed(TTL_MS + GRACE_MS) for pulse in pulses)
