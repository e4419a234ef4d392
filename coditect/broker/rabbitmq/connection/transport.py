"""The byte stream below a connection: measures how long nothing but heartbeats has come, and tests new connections."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Callable
from typing import Any

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from pamqp.header import ProtocolHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from coditect.broker.rabbitmq.errors import LOST

GREETING_SECONDS = 1.0
HEARTBEAT = Heartbeat().marshal()

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Installer = Callable[[asyncio.StreamWriter], Callable[[bytes], bytes]]
"""A function that gets a new connection's writer and returns the function for its incoming bytes."""


class Transport(TransportFactory):
    """The factory of a connection's byte streams, which measures how long nothing but heartbeats has come."""

    def __init__(self, *, install: Installer) -> None:
        self._install = install
        self._options: dict[str, Any] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._heard_at = self._opened_at = 0.0

    async def create(self, url: URL, **kwargs: Any) -> Streams:
        """Open a TCP or TLS stream to the URL, as aiormq requests."""
        self._options, self._opened_at = kwargs, math.inf
        reader, self._writer = await self._factory(url).create(url, **kwargs)
        self._listen(reader, self._writer)
        return reader, self._writer

    @staticmethod
    def _factory(url: URL) -> TransportFactory:
        return TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()

    def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        feed, take = reader.feed_data, self._install(writer)

        def hear(chunk: bytes) -> None:
            if chunk != HEARTBEAT:  # RabbitMQ sends them also on a connection from which it reads nothing any more
                self._heard_at = time.monotonic()
            if passed := take(chunk):
                feed(passed)

        self._heard_at = self._opened_at = time.monotonic()
        reader.feed_data = hear  # type: ignore[method-assign, assignment] # asyncio offers no other place to listen

    @property
    def greeted(self) -> bool:
        """Tell whether the broker has sent anything on the newest stream; a frozen one only takes the connection."""
        return self._heard_at > self._opened_at

    @property
    def certificate_end(self) -> float | None:
        """When the broker's TLS certificate expires, as a Unix time; None without TLS, or when it was not verified."""
        shown = None if self._writer is None else self._writer.get_extra_info("peercert")
        return float(ssl.cert_time_to_seconds(shown["notAfter"])) if shown else None

    @property
    def silent_seconds(self) -> float:
        """The seconds since the broker sent anything but heartbeats."""
        return time.monotonic() - self._heard_at

    async def is_greeted_anew(self, url: URL) -> bool:
        """Tell whether a broker at the URL answers the first bytes of a new connection."""
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                reader, writer = await self._factory(url).create(url, **self._options)
                try:
                    writer.write(ProtocolHeader().marshal())
                    await reader.readexactly(1)
                finally:
                    writer.transport.abort()
        except LOST:
            return False
        return True

    def abort(self) -> None:
        """Cut the newest stream at once, as a network fault would."""
        if self._writer is not None:
            self._writer.transport.abort()
