"""The refusal of commands that fail even in a batch of their own, with retries for agents' results."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from coditect.errors import CoditectError, NewerVersion
from coditect.model.value import value
from coditect.telemetry.metrics import Metrics
from coditect.telemetry.names import RESULTS_REFUSED
from dispatcher.ledger.commands import Began, Command, Finished
from dispatcher.shards.completions import CommandRefused, Settle

log = logging.getLogger(__name__)

MOST_TRIES = 5
"""The number of tries to record the end of an attempt, with growing pauses: six seconds in all."""
PAUSES_OF_KEPT = 25
"""The pause before a retry of a report on a newer dispatcher's row, as a multiple of the first pause: five seconds."""


@value
class QueuedCommand:
    """A command in a shard worker's queue, with its callbacks, its size, and how many tries were refused."""

    command: Command
    settle: Settle
    size_bytes: int = 0
    tries: int = 0  # that were refused before


class Refusals:
    """The handler of one shard's failed commands: it refuses each, or queues it again after a pause, by `put`."""

    def __init__(self, shard: int, metrics: Metrics, put: Callable[..., None], *, pause_seconds: float) -> None:
        self._shard = shard
        self._unrecorded = metrics.counter(RESULTS_REFUSED, reason="unrecorded")
        self._put = put
        self._pause_seconds = pause_seconds
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
            entry.settle.done(refusal)
        elif entry.tries < MOST_TRIES:
            self._put_later(entry, self._pause_seconds * 2**entry.tries, tries=entry.tries + 1)
        else:
            self._unrecorded.value += 1
            self._put(entry.command.unrecorded(error), CommandRefused(entry.settle, refusal))

    def _leave_alone(self, entry: QueuedCommand, error: NewerVersion) -> None:
        """Retry a result or a start later, or refuse another command, as only a newer dispatcher can read its row."""
        if not self._has_met_newer:
            self._has_met_newer = True
            facts = {"shard": self._shard, "command": type(entry.command).__name__, **error.facts}
            log.warning("A newer dispatcher wrote what a command needs; such rows are left alone", extra=facts)
        if isinstance(entry.command, Finished | Began):
            self._put_later(entry, self._pause_seconds * PAUSES_OF_KEPT, tries=entry.tries)
        else:
            entry.settle.done(error)

    def _put_later(self, entry: QueuedCommand, seconds: float, *, tries: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(
            seconds, lambda: self._put(entry.command, entry.settle, size_bytes=entry.size_bytes, tries=tries)
        )
