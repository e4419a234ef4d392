"""Sendings: one shard's publications on their way to the broker, and whether they may go there.

While a shard waits to be built on another broker nothing more of it is sent: what was published before is published
anew afterwards, under numbers of its own. Whether a publication is, the ledger says by the last number before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import replace

from coditect.broker.port import Broker
from coditect.errors import Overloaded, Unroutable
from dispatcher.ledger.effects import Publication
from dispatcher.shards.outgoing import send_task

Sent = Callable[[Publication, BaseException | None], None]


class ShardPublisher:
    """Sends publications; `sent` is told how each came out, but for those that were dropped."""

    def __init__(self, broker: Broker, sent: Sent) -> None:
        self._broker = broker
        self._sent = sent
        self._under_way: dict[int, tuple[Publication, asyncio.Future[None]]] = {}
        self._held: list[Publication] | None = None
        self._last = 0

    def send(self, publication: Publication) -> None:
        """Sends it, unless it is to be published anew."""
        number = publication.number
        if self._held is not None:
            self._held.append(publication)
        elif number > self._last:
            sending = asyncio.ensure_future(send_task(self._broker, publication.task, publication.agent))
            self._under_way[number] = publication, sending
            sending.add_done_callback(lambda done: self._done(publication, done))

    def _done(self, publication: Publication, done: asyncio.Future[None]) -> None:
        _, sending = self._under_way.get(publication.number, (None, None))
        if sending is done:  # not one that took the place of what was recalled
            del self._under_way[publication.number]
        if done.cancelled():
            return
        error = done.exception()
        if sending is done and publication.agent and isinstance(error, (Unroutable, Overloaded)):
            self.send(_for_anybody(publication))
        else:
            self._sent(publication, error)

    async def settled(self, within_seconds: float) -> None:
        """Returns when nothing is on its way any more, or the time is up."""
        if self._under_way:
            await asyncio.wait([sending for _, sending in self._under_way.values()], timeout=within_seconds)

    def hold(self, *, recall: bool) -> None:
        """Sends nothing from now on. What is on its way goes on, or is recalled: it was meant for another broker."""
        if self._held is None:
            self._held = []
        if recall:
            self._held += self._recall(tuple(self._under_way))

    def go_on(self, last: int) -> list[int]:
        """Sends what has a number above this; which publications were dropped, of those held and those on their way.

        The same number again drops nothing more.
        """
        held, self._held = self._held or [], None
        self._last = max(self._last, last)
        held += self._recall([number for number in self._under_way if number <= self._last])
        for publication in held:
            self.send(publication)
        return [publication.number for publication in held if publication.number <= self._last]

    def _recall(self, numbers: Iterable[int]) -> list[Publication]:
        recalled = []
        for number in numbers:
            publication, sending = self._under_way.pop(number)
            sending.cancel()
            recalled.append(publication)
        return recalled


def _for_anybody(publication: Publication) -> Publication:
    """What an agent's own queue refused. It is claimed: an earlier try of it may have got there all the same."""
    return replace(publication, agent="", task=replace(publication.task, published_at_ms=None))
