"""What was decided of one channel's deliveries, and how few frames say it.

Finished deliveries at the head of the channel leave as one `multiple` ack; those behind a delivery that
still runs are acked singly, so a slow task never holds back its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Settlement(Enum):
    """How a delivery is settled."""

    ACK = "ack"
    REQUEUE = "requeue"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class SettledRange:
    """One frame's worth: a delivery, or with `multiple` it and all before it."""

    tag: int
    verdict: Settlement
    multiple: bool = False


class Settlements:
    """Outstanding deliveries of one channel, in order, and what was decided of them."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """`wake` is called when there is something to write again, and when it presses; then `decided` and `written`
        are to be called.
        """
        self._wake = wake
        self._outstanding: dict[int, Settlement | None] = {}
        self._decided: list[int] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self.lost = False
        self.pressing = False
        """Whether some of what is to be written gives deliveries back: they are for somebody else, at once."""

    @property
    def outstanding(self) -> int:
        """Deliveries that the broker counts as unsettled."""
        return len(self._outstanding)

    def took(self, tag: int) -> None:
        """A delivery arrived."""
        self._outstanding[tag] = None

    def settle(self, tag: int, verdict: Settlement) -> None:
        """A delivery is decided; the second decision about it is ignored, and so is one of a lost channel."""
        if self.lost or self._outstanding.get(tag, verdict) is not None:
            return
        self._outstanding[tag] = verdict
        self._decided.append(tag)
        presses = verdict is not Settlement.ACK and not self.pressing
        self.pressing |= presses
        if len(self._decided) == 1 or presses:
            self._idle.clear()
            self._wake()

    def lose(self) -> None:
        """The channel is gone; nothing of it can be settled any more."""
        if self.lost:
            return
        self.lost = True
        self._outstanding.clear()
        self._decided.clear()
        self._idle.set()
        self._wake()

    async def flushed(self) -> None:
        """Waits until everything decided so far was written."""
        await self._idle.wait()

    def decided(self) -> list[SettledRange]:
        """What is to be written now, in this order; it is forgotten here."""
        decided, self._decided, self.pressing = self._decided, [], False
        head = self._acked_head()
        settled = [SettledRange(head, Settlement.ACK, multiple=True)] if head else []
        for tag in decided:
            verdict = self._outstanding.pop(tag, None)
            if verdict is not None:
                settled.append(SettledRange(tag, verdict))
        return settled

    def written(self) -> None:
        """What `decided` gave is on its way."""
        if not self._decided:
            self._idle.set()

    def _acked_head(self) -> int:
        """The last tag of the unbroken run of acked deliveries at the head; they are forgotten here."""
        head: list[int] = []
        for tag, verdict in self._outstanding.items():
            if verdict is not Settlement.ACK:
                break
            head.append(tag)
        for tag in head:
            del self._outstanding[tag]
        return head[-1] if head else 0
