"""A connection to RabbitMQ that is opened again after every loss, and the byte stream below it.

aiormq is used without aio-pika's robust layer: only the consumer knows what has to be restored (topology,
subscriptions, credit), so restoring lives in one place (docs/adr/0002-aiormq-without-the-robust-layer.md).
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import aiormq
from aiormq.abc import AbstractConnection, ExceptionType, TimeoutType
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import ConnectionClosed
from pamqp.header import ProtocolHeader
from pamqp.heartbeat import Heartbeat
from yarl import URL

from coditect.aio.supervisor import Backoff, run_until
from coditect.broker.port import ServerInfo
from coditect.broker.rabbitmq.channels import (
    CONNECTION_PARTS,
    LOST,
    canceled_by_us,
    check_library,
    is_blocked,
    open_channel,
    shown,
    tolerating_loss,
    unreachable,
)
from coditect.broker.rabbitmq.consumer_channel import ConsumerChannel
from coditect.broker.rabbitmq.publisher_channel import PublisherChannel
from coditect.broker.rabbitmq.stream import LivenessProbe, Stream
from coditect.errors import CoditectError, SetupError, UnsupportedBroker
from coditect.settings.addresses import check_address

log = logging.getLogger(__name__)

GREETING_SECONDS = 1.0
HEARTBEAT = Heartbeat().marshal()

StreamPair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Installer = Callable[[asyncio.StreamWriter], Callable[[bytes], bytes]]
"""A function that gets a new connection's writer and returns the function for its incoming bytes."""


class Transport(TransportFactory):
    """The factory of a connection's byte streams, which measures how long nothing but heartbeats has come."""

    def __init__(self, *, install: Installer) -> None:
        self._install = install
        self._options: dict[str, Any] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._heard_at = self._opened_at = 0.0

    async def create(self, url: URL, **kwargs: Any) -> StreamPair:
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


HEARTBEAT_SECONDS = 5
LEAST_HEARTBEAT, MAX_HEARTBEAT = 2, 60
"""The range of the `heartbeat` in a broker's URL, in seconds."""
CONNECTION_CHECK_SECONDS = 0.25
QUIET_SECONDS = 0.8
"""How long a connection is silent before the process asks the broker for an answer."""
LOST_SECONDS = 2.0
"""How long a connection is silent, without an answer either, before it may be replaced by a new one."""
PROBE_ANSWER_SECONDS = 1.0
BROKER_CONNECT_SECONDS = 5.0
GREETED_SECONDS = 2.0
"""The time in which one of several hosts sends its first bytes; a frozen node takes connections and says nothing."""
BROKER_CLOSE_SECONDS = 2.0
RESTORE_SECONDS = 30.0
UNREACHABLE_BACKOFF = Backoff(0.1, 1.0)
"""The pauses between attempts to connect while the broker cannot be reached: at most 1 s."""
REFUSED_BACKOFF = Backoff(0.1, 5.0)
"""The pauses between attempts to connect while a broker refuses the connection: at most 5 s."""
MAX_QUEUE_CHECKS = 100
"""The most channels that are open at once only to look at queues; a broker limits a connection to some thousand."""
LASTED_SECONDS = 1.0
"""How long a connection stands before its end is a loss, after which a new one is opened at once."""
OLDEST_BROKER = (3, 10)
AMQP_URL_EXAMPLE = "amqps://user:password@host:5671/vhost?cafile=/path/to/ca.pem"
AMQP_URL_PARAMETERS = ("auth", "cadata", "cafile", "capath", "certfile", "heartbeat", "keyfile", "timeout")
"""The parameters that a broker's URL may have."""

_NOT_OPENED: tuple[type[BaseException], ...] = (*LOST, CoditectError)

Restore = Callable[[AbstractConnection], Awaitable[None]]


class _Connection(aiormq.Connection):
    """A connection of aiormq with a write queue of 2048 entries, and a typed error for calls that its close ends."""

    FRAME_BUFFER_SIZE = 2048

    async def close(self, exc: ExceptionType | None = asyncio.CancelledError, timeout: TimeoutType = None) -> None:
        """Close the connection, and end pending calls with `exc`, or with ConnectionClosed where `exc` is None.

        aiormq would raise a bare `Exception` then.
        """
        await super().close(exc or ConnectionClosed(0, "The broker closed the connection"), timeout)


def end_calls_typed(connection: AbstractConnection) -> None:
    """Have pending calls on a connection that another library opened end as those of `_Connection` do."""
    if type(connection) is aiormq.Connection:
        connection.__class__ = _Connection


class RabbitConnection:
    """A connection to RabbitMQ that reconnects; `restore` runs on each new connection before any other use.

    Of several hosts the first that answers is taken, and another after a loss.
    """

    def __init__(self, url: str, *, name: str, restore: Restore) -> None:
        self.name = name
        self._hosts = deque(host.update_query(heartbeat=_heartbeat_of(host), name=name) for host in hosts_of(url))
        self._restore = restore
        self._up = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._newest: AbstractConnection | None = None
        """The connection that was tried last, which may never have been open."""
        self._transport = Transport(install=self._install)
        self._stream: Stream | None = None
        self._probe: LivenessProbe | None = None
        self.looks = asyncio.Semaphore(MAX_QUEUE_CHECKS)
        """The limit of looks at queues at the same time, each on a channel of its own."""
        self.retries = asyncio.Semaphore(MAX_QUEUE_CHECKS)
        """The same for queues that could not be consumed before, behind which the looks at others do not wait."""
        self.on_silence: Callable[[], None] | None = None
        """The function that is called before a connection without answers is given up."""
        self._heard_nothing = False
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self._hopeless = asyncio.Event()
        self._over = False
        self.last_error: BaseException | None = None
        self._away = False
        """Whether a connection attempt failed, or the connection was lost, since the last success."""
        self._noted: set[tuple[str, type[BaseException]]] = set()
        """The hosts and error types that were logged since the last successful connection."""

    @property
    def _url(self) -> URL:
        """The URL of the connected host, or of the host that was tried last."""
        return self._hosts[0]

    @property
    def address(self) -> str:
        """The URL of the connected or last tried host, without user, password and query."""
        return shown(str(self._url))

    @property
    def _facts(self) -> dict[str, str]:
        """The fields of each log record about the connection: its name and URL."""
        return {"connection": self.name, "url": self.address}

    @property
    def up(self) -> bool:
        """Tell whether the connection is open and restored, and the broker answers on it."""
        return self._up.is_set() and not self._over and not self._heard_nothing

    @property
    def answering(self) -> bool:
        """Tell whether the broker answers; False while the connection is open and nothing comes back on it."""
        return not self._heard_nothing

    @property
    def server(self) -> ServerInfo:
        """The broker's product, version as numbers, and TLS certificate's expiry, as of the last AMQP handshake."""
        properties = getattr(self._connection, "server_properties", None) or {}
        version = _version(_text(properties.get("version")))
        return ServerInfo(_text(properties.get("product")), version, self._transport.certificate_end)

    async def connection(self) -> AbstractConnection:
        """Wait without limit for the open connection, and return it.

        Raises:
            ConnectionError: when `run` has ended.
        """
        while True:
            await self._up.wait()
            if self._over:
                raise ConnectionError("The connection is closed")
            if self._connection is not None and not self._connection.is_closed:
                return self._connection
            await asyncio.sleep(0)

    def _install(self, writer: asyncio.StreamWriter) -> Callable[[bytes], bytes]:
        """Route a new connection's bytes through a `Stream`, and return the function for incoming bytes."""
        self._stream = Stream(writer.transport, writer.drain, asyncio.get_running_loop())
        return self._stream.feed

    @property
    def stream(self) -> Stream:
        """The byte stream of the present connection."""
        if self._stream is None:
            raise RuntimeError("There is no connection yet")
        return self._stream

    async def publisher_channel(self, connection: AbstractConnection) -> PublisherChannel:
        """Open a channel on which messages are published with confirms; raise one of `channels.LOST` on a loss."""
        stream = self.stream
        channel = await open_channel(connection, confirms=True)
        return PublisherChannel(channel, stream, frame_max=connection.connection_tune.frame_max)

    async def consumer_channel(self, connection: AbstractConnection) -> ConsumerChannel:
        """Open a channel on which queues are consumed; raise one of `channels.LOST` on a lost connection."""
        stream = self.stream
        return ConsumerChannel(await open_channel(connection), stream)

    async def first(self, seconds: float) -> None:
        """Wait until the first connection is open; raise after the given seconds, or at once when the set-up is wrong.

        Raises:
            BrokerUnavailable: when there is none in time, with the reason; retryable.
            SetupError: when the set-up is wrong, with the reason.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await run_until(self._up, renew=self._hopeless)
        if not self.up:
            raise unreachable(self.address, self.last_error) from self.last_error

    async def run(self) -> None:
        """Open and restore the connection after each loss, with pauses that grow while none lasts, until canceled."""
        self._up.clear()  # set by a run before this one that died, to say that there is no connection
        self._over = False
        failures = 0
        try:
            while not canceled_by_us():
                if await self._stood():
                    failures = 0
                else:
                    await asyncio.sleep(self._pause_seconds(failures))
                    failures += 1
                self._hosts.rotate(-1)
        finally:
            self._up.clear()
            await self._disconnect()
            self.abort()
            self._over = True
            self._up.set()

    async def _stood(self) -> bool:
        """Open a connection and wait until it is lost; return True if it was open for at least 1 s.

        One that ends as soon as it is used, such as by a declaration that crashes the broker's side, has failed.
        """
        connection = await self._open()
        if connection is None:
            return False
        began = asyncio.get_running_loop().time()
        await self._until_lost(connection)
        self._up.clear()
        self._away = True
        log.warning("The broker's connection was lost", extra={**self._facts, "reason": _end_of(connection)})
        return asyncio.get_running_loop().time() - began >= LASTED_SECONDS

    def _pause_seconds(self, failures: int) -> float:
        """Return the seconds until the next attempt to connect: doubled by each failure in a row, at most 5 s.

        The bound is 5 s where a broker refuses the connection, else 1 s. Half of the pause is random, so that clients
        return apart.
        """
        away = isinstance(self.last_error, OSError) and not self._hopeless.is_set()
        return (UNREACHABLE_BACKOFF if away else REFUSED_BACKOFF).pause(failures + 1) * self._random.uniform(0.5, 1.0)

    async def _until_lost(self, connection: AbstractConnection) -> None:
        """Wait until the connection is lost; cut it when it is silent while the broker answers new connections.

        By this a dead path is left early, and a broker that stands still altogether costs no redelivery: its
        connections end only by aiormq's own limit of three heartbeats. The probe is Coditect's, not AMQP's heartbeat:
        an event loop that was busy for seconds has its answer as soon as it reads again.
        """
        closing = connection.closing
        while not closing.done() and not canceled_by_us():
            quiet_in = 0.0 if self._heard_nothing else QUIET_SECONDS - self._transport.silent_seconds
            await asyncio.wait({closing}, timeout=max(CONNECTION_CHECK_SECONDS, quiet_in))
            if not self._is_silent or is_blocked(connection) or closing.done() or await self.answers():
                self._heard_nothing = False
                continue
            self._heard_nothing = True
            if self._transport.silent_seconds > LOST_SECONDS and await self._is_greeted_anew() and self._is_silent:
                log.warning("A silent connection is replaced", extra=self._facts)
                if self.on_silence is not None:
                    self.on_silence()
                self.abort()
        self._heard_nothing = False

    @property
    def _is_silent(self) -> bool:
        return self._transport.silent_seconds > QUIET_SECONDS

    async def _is_greeted_anew(self) -> bool:
        """Tell whether any of the hosts answers the first bytes of a new connection."""
        greetings = [self._transport.is_greeted_anew(host) for host in self._hosts]
        return any(await asyncio.gather(*greetings))

    async def answers(self) -> bool:
        """Ask the broker over the open connection, and tell whether it answers within a second."""
        connection = self._connection
        if connection is None or connection.is_closed or self._probe is None:
            return False
        answer = self._probe.send()
        await asyncio.wait({answer}, timeout=PROBE_ANSWER_SECONDS)
        return answer.done() and not answer.cancelled() and answer.result()

    async def _open(self) -> AbstractConnection | None:
        """Open and restore a connection; return None, and close the connection again, when that fails."""
        try:
            async with asyncio.timeout(BROKER_CONNECT_SECONDS) as limit:
                connection = await self._connect(limit)
            async with asyncio.timeout(RESTORE_SECONDS):
                await self._restore(connection)
        except asyncio.CancelledError:
            if canceled_by_us():
                raise
            return None
        except _NOT_OPENED as error:
            self._note(error)
            await self._disconnect()
            return None
        if self._away:
            log.info("The broker's connection stands again", extra=self._facts)
        self._away, self.last_error = False, None
        self._noted.clear()
        self._up.set()
        return connection

    async def _connect(self, limit: asyncio.Timeout) -> AbstractConnection:
        """Open a connection to a broker that is new enough; shorten the time limit where another host may be tried."""
        connection = self._newest = _Connection(self._url, transport_factory=self._transport, limit=2**20)
        with self._passing_over(limit):
            await connection.connect()
        self._connection, self._probe = connection, None
        check_library(connection, CONNECTION_PARTS)
        self._check_version()
        self._probe = await self._new_probe(connection)  # now: a dead connection would keep an opening channel
        return connection

    async def _new_probe(self, connection: AbstractConnection) -> LivenessProbe:
        probe = LivenessProbe(connection, self.stream)
        await probe.open()
        return probe

    async def _disconnect(self) -> None:
        """Close the newest connection, open or not; never raises."""
        if self._newest is None:
            return
        # aiormq has no reader or writer task yet when the handshake failed (AttributeError)
        with tolerating_loss("Closing a broken connection failed", AttributeError):
            async with asyncio.timeout(BROKER_CLOSE_SECONDS):
                await self._newest.close()

    @contextmanager
    def _passing_over(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Within the block, end the time limit after 2 s if the host has sent nothing and there is another to try.

        A host that was given up so before gets its whole time: all of them may be slow.
        """

        def look() -> None:
            if not self._transport.greeted and not limit.expired():
                limit.reschedule(loop.time())

        loop = asyncio.get_running_loop()
        hurried = len(self._hosts) > 1 and (self.address, TimeoutError) not in self._noted
        timer = loop.call_later(GREETED_SECONDS, look) if hurried else None
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def _note(self, error: BaseException) -> None:
        if (noted := (self.address, type(error))) not in self._noted:
            log.warning("The broker cannot be reached, trying on", extra={**self._facts, "reason": repr(error)})
            self._noted.add(noted)
        self._away, self.last_error = True, error
        if isinstance(unreachable(self.address, error), SetupError):
            self._hopeless.set()

    def _check_version(self) -> None:
        if self.server.product == "RabbitMQ" and self.server.version < OLDEST_BROKER:
            version = ".".join(map(str, self.server.version))
            raise UnsupportedBroker("RabbitMQ 3.10 or newer is needed", version=version, url=self.address)

    def abort(self) -> None:
        """Cut the connection's TCP transport at once, as a network fault would."""
        self._transport.abort()


def hosts_of(url: str) -> tuple[URL, ...]:
    """Return the broker URL of each host in a setting that lists several URLs or host names, separated by commas.

    Scheme, user, virtual host and query default to those of the first address.

    Raises:
        SetupError: for an address that is no URL of a broker, or has a parameter that is unknown or weakens TLS, and
            when some of the addresses are encrypted and others are not.
    """
    texts = [text for part in url.split(",") if (text := part.strip())] or [""]
    first = _broker_url(texts[0])
    whole = [_broker_url(text) if "://" in text else _like(first, _broker_url(f"amqp://{text}")) for text in texts[1:]]
    if any(host.scheme != first.scheme for host in whole):
        fix = f"CODITECT_AMQP_URL={AMQP_URL_EXAMPLE},other:5671"
        raise SetupError(
            "Some addresses of the broker use TLS, and others do not", variable="CODITECT_AMQP_URL", fix=fix
        )
    return (first, *whole)


def _broker_url(text: str) -> URL:
    check_address(text, "CODITECT_AMQP_URL", example=AMQP_URL_EXAMPLE, parameters=AMQP_URL_PARAMETERS)
    try:
        url = URL(text)
        known = url.scheme in ("amqp", "amqps") and url.explicit_port != 0
    except ValueError:
        known = False
    if not known:  # what yarl says may hold the password
        fix = f"CODITECT_AMQP_URL={AMQP_URL_EXAMPLE}"
        raise SetupError("This is no address of a broker", variable="CODITECT_AMQP_URL", fix=fix)
    try:
        bytes.fromhex(url.query.get("cadata", ""))
    except ValueError as error:
        fix = "write the certificate's DER form in hexadecimal, or name its file: ?cafile=/path/to/ca.pem"
        raise SetupError("A certificate in an address is not hexadecimal", parameter="cadata", fix=fix) from error
    return url


def _heartbeat_of(url: URL) -> str:
    """Return the seconds of AMQP's heartbeat that a broker's URL names, by default 5."""
    text = url.query.get("heartbeat", str(HEARTBEAT_SECONDS))
    if not (text.isascii() and text.isdecimal() and LEAST_HEARTBEAT <= int(text[:3]) <= MAX_HEARTBEAT):
        fix = f"?heartbeat={HEARTBEAT_SECONDS}: {LEAST_HEARTBEAT} to {MAX_HEARTBEAT} whole seconds"
        raise SetupError("The heartbeat is outside its range", variable="CODITECT_AMQP_URL", heartbeat=text, fix=fix)
    return text


def _like(first: URL, other: URL) -> URL:
    if other.user is not None:  # what looks like a second host is the end of a password with a comma
        fix = "%2C for , in user and password; a whole URL for a host with a user of its own"
        raise SetupError("A host after a comma has a user", variable="CODITECT_AMQP_URL", fix=fix)
    return first.with_host(other.host or "localhost").with_port(other.explicit_port)


def _end_of(connection: AbstractConnection) -> str:
    closing = connection.closing
    return repr(closing.exception()) if closing.done() and not closing.cancelled() else "canceled"


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _version(text: str) -> tuple[int, ...]:
    numbers = re.split(r"[+-]", text, maxsplit=1)[0].split(".")
    return tuple(int(number) for number in numbers if number.isdigit())
