"""The channels for publishes, split so that a queue that sends no confirms holds up only the publishes to it.

A queue that does not answer (its leader hangs, or is elected for ever) never confirms. Worse, RabbitMQ's channel waits
for the queue: half a minute for the first message, and for good when some hundreds lie before it; then the connection
waits, too. So tasks, replies, results, retries, events and everything else have a channel each: the queues of clients
and listeners come and go, and in a cluster without one of its nodes, RabbitMQ takes its time to delete a queue. Where
the oldest publish of a channel stays unconfirmed for some seconds, its key gets a new channel of its own, and the
others another; only a new channel knows the new leader of a queue whose node died.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from coditect.aio.supervisor import Supervisor
from coditect.broker.rabbitmq.connection.recovery import RabbitConnection
from coditect.broker.rabbitmq.path import PublisherChannel, Unconfirmed
from coditect.broker.rabbitmq.publishing.confirm_window import ConfirmWindow
from coditect.wire import routing

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
STUCK_SECONDS = 3.0
"""The time after which a channel's oldest unconfirmed publish counts as stuck, if the broker answers.

The time doubles, up to `MOST_RENEW_SECONDS`, each time that a key is stuck on a channel of its own.
"""
GRACE_SECONDS = 1.0
"""The time that other publishes on a stuck channel have for their confirms before they are sent again."""
RENEW_SECONDS = 1.0
"""The age from which a channel on which a publish is refused gives way to a new one."""
MOST_RENEW_SECONDS = 30.0
"""The longest time between two channels for the same refused key: from 1 s the time doubles, as a queue may be full."""
DRAIN_SECONDS = 30.0
"""The longest time for which a channel that gave way waits for the confirms of its publishes."""
APART_SECONDS = 5.0
"""The time for which a key keeps a channel of its own after its last publish."""
MOST_APART = 16
APART_WINDOW = 100
EVENTS_WINDOW = 200
"""The limit of unconfirmed events; behind 400 on a channel that waits, RabbitMQ stops the whole connection."""

Key = tuple[str, str]
"""The exchange and routing key of a publish."""


@dataclass(slots=True, eq=False)
class WindowedChannel:
    """A channel for publishes, opened on first use, with a limit of unconfirmed publishes."""

    window: ConfirmWindow
    publisher_channel: PublisherChannel | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)
    oldest: int = 0
    """The number of the oldest unconfirmed publish at the last check."""
    since: float = 0.0
    """The time since when this publish is the oldest unconfirmed one, on the event loop's clock."""
    opened_at: float = 0.0
    """The time at which the channel was opened, on the event loop's clock."""
    used_at: float = 0.0
    """The time at which a key's own channel last had an unconfirmed publish, on the event loop's clock."""
    stuck_seconds: float = STUCK_SECONDS

    @property
    def first(self) -> Unconfirmed | None:
        """The publish on the open channel that has waited longest for its confirm; None when none waits."""
        channel = self.publisher_channel
        return None if channel is None or channel.closed else channel.oldest

    async def opened(self, rabbit: RabbitConnection) -> PublisherChannel:
        """Return the open channel, opened if need be; waits for a connection.

        Raises:
            Exception: any of `errors.LOST`, when the connection is lost.
        """
        async with self.opening:
            connection, channel = await rabbit.connection(), self.publisher_channel
            if channel is None or channel.closed or channel.connection is not connection:
                channel = self.publisher_channel = await rabbit.path.publisher_channel(connection)
                self.opened_at = asyncio.get_running_loop().time()
            return channel


def _kind(exchange: str) -> str:
    if exchange in (routing.SUBMIT, routing.TASKS, routing.AGENTS):
        return "tasks"
    if exchange in (routing.REPLIES, ""):
        return "replies"
    if exchange == routing.RESULTS:
        return "results"
    if exchange in (routing.EVENTS, routing.BROADCAST):
        return "events"
    return "retries" if exchange == routing.DEAD or exchange.startswith("coditect.retry.") else "rest"


class PublishChannels:
    """The channels on which a connection publishes: one for each kind of message, and for keys without confirms."""

    def __init__(self, background: Supervisor, *, window: int) -> None:
        self._background = background
        self._size = window
        self._kinds: dict[str, WindowedChannel] = {}
        self._of_exchange: dict[str, WindowedChannel] = {}
        self._apart: dict[Key, WindowedChannel] = {}
        self._replaced: list[WindowedChannel] = []
        """The channels that gave way to new ones, from then (`opened_at`) until their publishes are confirmed."""
        self._renewals: dict[Key, tuple[float, float]] = {}
        """When a refused key got a new channel last, and the least time until it gets another."""

    def of(self, exchange: str, routing_key: str) -> WindowedChannel:
        """Return the channel on which to publish to an exchange and routing key."""
        if self._apart and (apart := self._apart.get((exchange, routing_key))) is not None:
            return apart
        windowed = self._of_exchange.get(exchange)
        return self._new_exchange(exchange) if windowed is None else windowed

    def refused(self, exchange: str, routing_key: str) -> None:
        """Have later publishes go over a new channel if a publish was refused on one that has been open for a second.

        A channel of RabbitMQ 3.10 whose first publish to a quorum queue comes while the queue has no leader, as after
        the death of a node, asks the dead leader ever after, and refuses all publishes to the queue; a new channel
        knows the new leader. A full queue refuses on the new channel, too: its key gets new ones ever more rarely.
        """
        key = (exchange, routing_key)
        windowed = self.of(exchange, routing_key)
        old, now = windowed.publisher_channel, asyncio.get_running_loop().time()
        renewed_at, pause = self._renewals.get(key, (-math.inf, 0.0))
        if old is None or now - windowed.opened_at < RENEW_SECONDS or now - renewed_at < pause:
            return
        recent = {one: renewal for one, renewal in self._renewals.items() if now - renewal[0] < 2 * MOST_RENEW_SECONDS}
        pause = min(2 * pause, MOST_RENEW_SECONDS) if key in recent else RENEW_SECONDS
        self._renewals = recent | {key: (now, pause)}
        self._replaced.append(replace(windowed, opened_at=now))
        windowed.publisher_channel, windowed.opened_at, windowed.oldest = None, now, 0

    def _new_exchange(self, exchange: str) -> WindowedChannel:
        kind = _kind(exchange)
        windowed = self._kinds.get(kind)
        if windowed is None:
            size = min(self._size, EVENTS_WINDOW) if kind == "events" else self._size
            windowed = self._kinds[kind] = WindowedChannel(ConfirmWindow(size))
        self._of_exchange[exchange] = windowed
        return windowed

    # -- looking after them ---------------------------------------------------------------------------------

    async def watch(self, answers: Callable[[], Awaitable[bool]]) -> None:
        """Check for ever, every 0.5 s: give a routing key that gets no confirms its own channel, until it is idle."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for windowed in (*self._kinds.values(), *self._replaced, *self._apart.values()):
                key = self._stuck(windowed)
                if key is not None:
                    await self._set_apart(windowed, key, answers)
            self._join()

    def _stuck(self, windowed: WindowedChannel) -> Key | None:
        """Return exchange and key of a channel's oldest publish if unconfirmed for 3 s without an alarm, else None."""
        first = windowed.first
        now = asyncio.get_running_loop().time()
        channel = windowed.publisher_channel
        if first is None or channel is None or first.number != windowed.oldest or channel.held_up:
            windowed.oldest, windowed.since = (0 if first is None else first.number), now
            return None
        return (first.exchange, first.routing_key) if now - windowed.since >= windowed.stuck_seconds else None

    async def _set_apart(self, windowed: WindowedChannel, key: Key, answers: Callable[[], Awaitable[bool]]) -> None:
        publisher_channel, apart = windowed.publisher_channel, self._apart.get(key)
        if publisher_channel is None or (len(self._apart) >= MOST_APART and apart is None):
            return
        answered = await answers()
        if self._stuck(windowed) != key or windowed.publisher_channel is not publisher_channel:
            return  # we had not read the confirm yet
        if apart is None:
            log.warning(
                "A publish is not confirmed; its like go over a channel of their own",
                extra={"exchange": key[0], "routing_key": key[1]},
            )
            self._keep_apart(key)
        elif apart is windowed:
            apart.stuck_seconds = min(2 * apart.stuck_seconds, MOST_RENEW_SECONDS)
        if answered:  # else the connection goes, with everything on it
            windowed.publisher_channel, windowed.oldest = None, 0
            self._background.start(_give_back(publisher_channel), name="give back")

    def _keep_apart(self, key: Key) -> None:
        now = asyncio.get_running_loop().time()
        self._apart.setdefault(key, WindowedChannel(ConfirmWindow(APART_WINDOW), used_at=now))

    def accuse(self) -> None:
        """Reserve, for after the reconnect, a channel for the routing key of each channel's oldest unconfirmed publish.

        The current connection answers nothing, and these publishes may be the cause. At most 16 keys have such
        channels.
        """
        for windowed in (*self._kinds.values(), *self._replaced):
            first = windowed.first
            if first is not None and len(self._apart) < MOST_APART:
                self._keep_apart((first.exchange, first.routing_key))

    def _join(self) -> None:
        """Close the channels that gave way and are confirmed, and those of keys with nothing unconfirmed for 5 s."""
        now = asyncio.get_running_loop().time()
        for windowed in tuple(self._replaced):
            if windowed.first is None or now - windowed.opened_at > DRAIN_SECONDS:
                self._replaced.remove(windowed)
                self._close(windowed)
        for key, windowed in tuple(self._apart.items()):
            if windowed.first is not None:
                windowed.used_at = now
            elif now - windowed.used_at > APART_SECONDS:
                del self._apart[key]
                self._close(windowed)

    def _close(self, windowed: WindowedChannel) -> None:
        if windowed.publisher_channel is not None:
            self._background.start(windowed.publisher_channel.close(), name="close a channel")


async def _give_back(publisher_channel: PublisherChannel) -> None:
    """Close a stuck channel after a second, which fails its unconfirmed publishes, so that callers repeat them."""
    await asyncio.sleep(GRACE_SECONDS)
    await publisher_channel.close()
