"""The settlements of one channel's deliveries, in as few frames as possible.

Finished deliveries at the head of the channel leave as one `multiple` ack; those behind a delivery that still runs are
acked singly, so a slow task never holds back its neighbours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum


class Settlement(Enum):
    """The way in which a delivery is settled."""

    ACK = "ack"
    REQUEUE = "requeue"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class SettledRange:
    """The content of one frame: a delivery, or with `multiple` that delivery and all before it."""

    tag: int
    verdict: Settlement
    multiple: bool = False


class Settlements:
    """The outstanding deliveries of one channel, in order, with the decided settlements."""

    def __init__(self, wake: Callable[[], None]) -> None:
        """Prepare the settlements; `wake` is called for new or urgent ones, to be fetched by `decided`."""
        self._wake = wake
        self._outstanding: dict[int, Settlement | None] = {}
        self._decided: list[int] = []
        self._idle = asyncio.Event()
        self._idle.set()
        self.lost = False
        self.pressing = False
        """Whether a settlement to write returns a delivery, which others are waiting for."""

    @property
    def outstanding(self) -> int:
        """The number of deliveries that the broker counts as unsettled."""
        return len(self._outstanding)

    def took(self, tag: int) -> None:
        """Note a delivery that arrived, to be settled in the order of arrival."""
        self._outstanding[tag] = None

    def settle(self, tag: int, verdict: Settlement) -> None:
        """Decide a delivery; a second decision is ignored, and so is one of a lost channel."""
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
        """Note that the channel is gone: none of its deliveries can be settled any more."""
        if self.lost:
            return
        self.lost = True
        self._outstanding.clear()
        self._decided.clear()
        self._idle.set()
        self._wake()

    async def flushed(self) -> None:
        """Wait until all settlements decided so far are written."""
        await self._idle.wait()

    def decided(self) -> list[SettledRange]:
        """Return the decided settlements in the order in which to write them, and forget them here."""
        decided, self._decided, self.pressing = self._decided, [], False
        head = self._acked_head()
        settled = [SettledRange(head, Settlement.ACK, multiple=True)] if head else []
        for tag in decided:
            verdict = self._outstanding.pop(tag, None)
            if verdict is not None:
                settled.append(SettledRange(tag, verdict))
        return settled

    def written(self) -> None:
        """Note that the settlements of `decided` are on their way."""
        if not self._decided:
            self._idle.set()

    def _acked_head(self) -> int:
        """Remove the unbroken run of acked deliveries at the head, and return its last tag; 0 for none."""
        head: list[int] = []
        for tag, verdict in self._outstanding.items():
            if verdict is not Settlement.ACK:
                break
            head.append(tag)
        for tag in head:
            del self._outstanding[tag]
        return head[-1] if head else 0
