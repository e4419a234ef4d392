"""Acknowledgements of one channel, gathered per turn of the event loop.

Finished deliveries at the head of the channel leave as one `multiple` ack; those behind a delivery that
still runs are acked singly, so a slow task never holds back its neighbours.
"""

from __future__ import annotations

import asyncio
from enum import Enum

from aiormq.channel import Channel

from coditect.broker.amqp.faults import LOST, canceled_by_us


class Verdict(Enum):
    """How a delivery is settled."""

    ACK = "ack"
    REQUEUE = "requeue"
    REJECT = "reject"


class Settlements:
    """Outstanding deliveries of one channel, in order, and what was decided of them."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._outstanding: dict[int, Verdict | None] = {}
        self._decided: list[int] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.lost = False

    def took(self, tag: int) -> None:
        """A delivery arrived."""
        self._outstanding[tag] = None

    def settle(self, tag: int, verdict: Verdict) -> None:
        """A delivery is decided; the second decision about it is ignored, and so is one of a lost channel."""
        if self.lost or self._outstanding.get(tag, verdict) is not None:
            return
        self._outstanding[tag] = verdict
        self._decided.append(tag)
        self._idle.clear()
        self._wake.set()

    def lose(self) -> None:
        """The channel is gone; nothing of it can be settled any more."""
        self.lost = True
        self._outstanding.clear()
        self._decided.clear()
        self._idle.set()
        self._wake.set()

    async def flushed(self) -> None:
        """Waits until everything decided so far was written."""
        await self._idle.wait()

    async def run(self) -> None:
        """Writes what was decided, once per loop turn, until the channel is lost."""
        while not self.lost and not canceled_by_us():
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(0)  # lets the deliveries that finish in this turn join
            try:
                await self._flush()
            except asyncio.CancelledError:
                if canceled_by_us():
                    raise
                self.lose()
            except LOST:
                self.lose()
            if not self._decided:
                self._idle.set()

    async def _flush(self) -> None:
        decided, self._decided = self._decided, []
        head = self._acked_head()
        if head:
            await self._channel.basic_ack(head, multiple=True, wait=False)
        for tag in decided:
            verdict = self._outstanding.pop(tag, None)
            if verdict is Verdict.ACK:
                await self._channel.basic_ack(tag, wait=False)
            elif verdict is not None:
                await self._channel.basic_nack(tag, requeue=verdict is Verdict.REQUEUE, wait=False)

    def _acked_head(self) -> int:
        """The last tag of the unbroken run of acked deliveries at the head; they are forgotten here."""
        head: list[int] = []
        for tag, verdict in self._outstanding.items():
            if verdict is not Verdict.ACK:
                break
            head.append(tag)
        for tag in head:
            del self._outstanding[tag]
        return head[-1] if head else 0
