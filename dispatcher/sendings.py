"""Sendings: one shard's publications on their way to the broker, and whether they may go there.

While a shard waits to be built on another broker nothing of it is sent: all of it is published anew afterwards, under
numbers of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coditect.broker.port import Broker
from dispatcher.layers.ledger.effects import Publication
from dispatcher.outgoing import send_task

Sent = Callable[[Publication, BaseException | None], None]


class Sendings:
    """Sends publications; `sent` is told how each came out, but for those that were dropped."""

    def __init__(self, broker: Broker, sent: Sent) -> None:
        self._broker = broker
        self._sent = sent
        self._under_way: dict[int, asyncio.Future[None]] = {}
        self._held: list[int] | None = None
        self._last = 0

    def send(self, publication: Publication) -> None:
        """Sends it, unless it is to be published anew."""
        number = publication.number
        if self._held is not None:
            self._held.append(number)
        elif number > self._last:
            sending = self._under_way[number] = asyncio.ensure_future(send_task(self._broker, publication.task))
            sending.add_done_callback(lambda done: self._done(publication, done))

    def _done(self, publication: Publication, done: asyncio.Future[None]) -> None:
        self._under_way.pop(publication.number, None)
        if not done.cancelled():
            self._sent(publication, done.exception())

    async def settled(self, within_seconds: float) -> None:
        """Returns when nothing is on its way any more, or the time is up."""
        if self._under_way:
            await asyncio.wait(tuple(self._under_way.values()), timeout=within_seconds)

    def hold(self) -> None:
        """Sends nothing from now on, and drops what is on its way."""
        if self._held is None:
            self._held = []
        for number, sending in tuple(self._under_way.items()):
            self._held.append(number)
            sending.cancel()

    def go_on(self, last: int) -> list[int]:
        """Sends again, what has a number above this; which publications were dropped meanwhile."""
        dropped, self._held = self._held or [], None
        self._last = last
        return dropped
