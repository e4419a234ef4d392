"""The settlements of one channel's deliveries, in as few frames as possible.

Finished deliveries at the head of the channel leave as one `multiple` ack; deliveries behind an unsettled one are
acked singly, so a slow task never holds back its neighbors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Settlement(Enum):
    """The way in which a delivery is settled: ack, requeue or reject."""

    ACK = "ack"
    REQUEUE = "requeue"
    REJECT = "reject"


ACK = Settlement.ACK
"""The settlement of almost every delivery, by a name of its own: a look-up in the enum takes 0.1 µs, three per task."""


@dataclass(frozen=True, slots=True)
class SettledRange:
    """An ack, requeue or reject to send: for one delivery tag, or with `multiple` for all unsettled ones up to it."""

    tag: int
    verdict: Settlement
    multiple: bool = False


class Settlements:
    """The unsettled deliveries of one channel, in order, with the decided settlements that are not written yet."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Start without deliveries; `wake` is called when settlements must be written, or the channel is lost.

        Of the settlements since the last writing, it is called for the first, and for the first requeue or reject, for
        which other consumers wait.
        """
        self._wake = wake
        self._outstanding: dict[int, Settlement | None] = {}
        self._decided: list[int] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self.lost = False
        self.pressing = False
        """Whether a decided settlement is a requeue or reject, for which other consumers wait."""

    @property
    def outstanding(self) -> int:
        """The number of deliveries that the broker counts as unsettled."""
        return len(self._outstanding)

    def took(self, tag: int) -> None:
        """Record a delivery that arrived on the channel as unsettled."""
        self._outstanding[tag] = None

    def settle(self, tag: int, verdict: Settlement) -> None:
        """Decide how a delivery is settled; ignored after an earlier decision or on a lost channel."""
        if self.lost or self._outstanding.get(tag, verdict) is not None:
            return
        self._outstanding[tag] = verdict
        self._decided.append(tag)
        presses = verdict is not ACK and not self.pressing
        self.pressing |= presses
        if len(self._decided) == 1 or presses:
            self._idle.clear()
            self._wake()

    def lose(self) -> None:
        """Mark the channel as gone: none of its deliveries can be settled any more; idempotent."""
        if self.lost:
            return
        self.lost = True
        self._outstanding.clear()
        self._decided.clear()
        self._idle.set()
        self._wake()

    async def flushed(self) -> None:
        """Wait until no decided settlement is left to write, or the channel is lost."""
        await self._idle.wait()

    def decided(self) -> list[SettledRange]:
        """Return the decided settlements to write, in order, and forget them; all acks at the head become one range."""
        decided, self._decided, self.pressing = self._decided, [], False
        head = self._acked_head()
        settled = [SettledRange(head, ACK, multiple=True)] if head else []
        for tag in decided:
            verdict = self._outstanding.pop(tag, None)
            if verdict is not None:
                settled.append(SettledRange(tag, verdict))
        return settled

    def written(self) -> None:
        """Mark the settlements that `decided` returned as written."""
        if not self._decided:
            self._idle.set()

    def _acked_head(self) -> int:
        """Remove the acked deliveries before the first unacked one, and return the last removed tag; 0 for none."""
        head: list[int] = []
        for tag, verdict in self._outstanding.items():
            if verdict is not ACK:
                break
            head.append(tag)
        for tag in head:
            del self._outstanding[tag]
        return head[-1] if head else 0
