"""Publishing with confirms, `mandatory`, a window, and patience."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from aiormq.channel import Channel
from aiormq.exceptions import DeliveryError, PublishError

from coditect.broker.amqp.channels import HOT_FRAMES, open_channel
from coditect.broker.amqp.faults import LOST, canceled_by_us, refusal
from coditect.broker.amqp.link import Link
from coditect.broker.amqp.properties import to_properties
from coditect.errors import BrokerUnavailable, CoditectError, InvalidTask, Overloaded, PublishUnconfirmed, Unroutable
from coditect.model.message import Message

_UNSPEAKABLE = (TypeError, ValueError, struct.error)
"""What pamqp raises for values that have no AMQP encoding; nothing was sent then."""
FIRST_PAUSE_SECONDS = 0.01
LONGEST_PAUSE_SECONDS = 0.5
GATE_SECONDS = 0.5


@dataclass(slots=True)
class _Attempt:
    """What is known of one publish while it is under way."""

    message: Message
    exchange: str
    routing_key: str
    wait_when_full: bool
    in_flight: bool = False
    unknown: bool = False
    refusals: int = 0
    blocked: bool = False

    def lose(self) -> None:
        """The connection went: if it was sent, nobody knows whether it arrived."""
        self.unknown = self.unknown or self.in_flight
        self.in_flight = False

    def verdict(self) -> CoditectError:
        """What to say when the time is over."""
        facts = {"exchange": self.exchange, "routing_key": self.routing_key}
        if self.in_flight or self.unknown:
            return PublishUnconfirmed("No confirm in time; the message may still be delivered", **facts)
        if self.refusals or self.blocked:
            return Overloaded("The broker takes no more messages for now", **facts)
        return BrokerUnavailable("The broker could not be reached in time", **facts)


class Publisher:
    """Publishes over one link: at most `window` unconfirmed at once, repeated until it is known or too late."""

    def __init__(self, link: Link, *, window: int) -> None:
        self._link = link
        self._window = asyncio.Semaphore(window)
        self._channel: Channel | None = None
        self._opening = asyncio.Lock()
        self._gated = 0

    @property
    def blocked(self) -> bool:
        """Whether publishes wait for the broker's alarm to end."""
        return self._gated > 0 and self._link.up

    async def publish(
        self, message: Message, *, exchange: str, routing_key: str, timeout_seconds: float, wait_when_full: bool
    ) -> None:
        """See `Broker.publish`."""
        attempt = _Attempt(message, exchange, routing_key, wait_when_full)
        try:
            async with asyncio.timeout(timeout_seconds), self._window:
                while not await self._taken(attempt):
                    await self._pause(attempt)
        except TimeoutError as error:
            raise attempt.verdict() from error

    async def _taken(self, attempt: _Attempt) -> bool:
        """One try; False when another one is worth it."""
        try:
            return await self._tried(attempt)
        except DeliveryError as error:
            attempt.in_flight = False
            attempt.refusals += 1
            if not attempt.wait_when_full:
                raise attempt.verdict() from error
        except asyncio.CancelledError:
            if canceled_by_us():
                raise
            attempt.lose()
        except LOST as error:
            about_us = refusal(error, entity=attempt.exchange or "amq.default")
            if about_us is not None:
                raise about_us from error
            attempt.lose()
        return False

    async def _tried(self, attempt: _Attempt) -> bool:
        channel = self._channel
        if channel is None or channel.is_closed or not self._link.up:
            channel = await self._open()
        if not await self._open_gate(channel):
            attempt.blocked = True
            return False
        attempt.in_flight = True
        try:
            await channel.basic_publish(
                attempt.message.body,
                exchange=attempt.exchange,
                routing_key=attempt.routing_key,
                properties=to_properties(attempt.message),
                mandatory=True,
                wait=False,
            )
        except PublishError as error:
            raise _unroutable(attempt) from error
        except _UNSPEAKABLE as error:
            raise InvalidTask("AMQP cannot carry a property or header", reason=str(error)[:300]) from error
        return True

    async def _open_gate(self, channel: Channel) -> bool:
        """Waits while the broker says `connection.blocked`; aiormq itself would go on sending.

        False after a while, for another look: a connection that dies while it is blocked never opens.
        """
        if _ends_at_once(channel.connection.ready()):
            return True
        self._gated += 1
        try:
            async with asyncio.timeout(GATE_SECONDS):
                await channel.connection.ready()
        except TimeoutError:
            return False
        finally:
            self._gated -= 1
        return True

    async def _open(self) -> Channel:
        async with self._opening:
            connection = await self._link.connection()
            if self._channel is None or self._channel.is_closed or self._channel.connection is not connection:
                self._channel = await open_channel(connection, confirms=True, frames=HOT_FRAMES)
            return self._channel

    async def _pause(self, attempt: _Attempt) -> None:
        pause = FIRST_PAUSE_SECONDS * 2 ** min(attempt.refusals, 8)
        await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))


def _unroutable(attempt: _Attempt) -> Unroutable:
    return Unroutable(
        "No queue is bound to this key; nothing was taken",
        exchange=attempt.exchange,
        routing_key=attempt.routing_key,
    )


def _ends_at_once(wait: Coroutine[Any, Any, None]) -> bool:
    """Whether there is nothing to wait for. Taking its first step asks that without a timer per message."""
    try:
        wait.send(None)
    except StopIteration:
        return True
    wait.close()
    return False
