"""The publisher of one shard: its publications on their way to the broker, and whether they may go there.

While a shard waits for a rebuild on another broker its publications are held: the earlier ones are published again
afterwards, under numbers of their own. The ledger says which these are by the last number before the rebuild.
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
    """The publisher of one shard; `sent` gets the outcome of each publication that was not dropped."""

    def __init__(self, broker: Broker, sent: Sent) -> None:
        self._broker = broker
        self._sent = sent
        self._under_way: dict[int, tuple[Publication, asyncio.Future[None]]] = {}
        self._held: list[Publication] | None = None
        self._last = 0

    def send(self, publication: Publication) -> None:
        """Send a publication, unless the rebuild publishes it again."""
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
        """Wait until no publication is on its way, or the time is up."""
        if self._under_way:
            await asyncio.wait([sending for _, sending in self._under_way.values()], timeout=within_seconds)

    def hold(self, *, recall: bool) -> None:
        """Hold all publications from now on; with `recall` also those on their way to another broker."""
        if self._held is None:
            self._held = []
        if recall:
            self._held += self._recall(tuple(self._under_way))

    def go_on(self, last: int) -> list[int]:
        """Send the held publications with numbers above `last`, and return the numbers of the dropped ones.

        Both held publications and those on their way up to `last` are dropped. A second call with the same number drops
        nothing more.
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
    """Return a publication for any agent after an agent's own queue refused it.

    Agents must ask for a claim before they run it, since an earlier try may have reached the agent all the same.
    """
    return replace(publication, agent="", task=replace(publication.task, published_at_ms=None))
