"""A connection to RabbitMQ that is opened again after every loss.

aiormq is used without aio-pika's robust layer: only the consumer knows what has to be restored (topology,
subscriptions, credit), so restoring lives in one place (docs/adr/0002-aiormq-without-the-robust-layer.md).
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiormq
from aiormq.abc import AbstractConnection, ExceptionType, TimeoutType
from aiormq.exceptions import ConnectionClosed
from yarl import URL

from coditect.aio.backoff import Backoff
from coditect.broker.port import ServerInfo
from coditect.broker.rabbitmq.connection.channels import is_blocked
from coditect.broker.rabbitmq.connection.transport import Transport
from coditect.broker.rabbitmq.errors import LOST, canceled_by_us, shown, unreachable
from coditect.broker.rabbitmq.path import Question, WirePath
from coditect.errors import CoditectError, SetupError, UnsupportedBroker
from coditect.settings.addresses import check_address

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5
LOOK_SECONDS = 0.25
QUIET_SECONDS = 0.8
"""How long a connection is silent before the process asks the broker for an answer."""
LOST_SECONDS = 2.0
"""How long a connection is silent, without an answer either, before it may be replaced by a new one."""
ANSWER_SECONDS = 1.0
CONNECT_SECONDS = 5.0
GREETED_SECONDS = 2.0
"""The time in which one of several hosts sends its first bytes; a frozen node takes connections and says nothing."""
CLOSE_SECONDS = 2.0
RESTORE_SECONDS = 30.0
CLOSED = Backoff(0.1, 1.0)
"""The pauses between attempts to connect while the broker cannot be reached: at most 1 s."""
REFUSED = Backoff(0.1, 5.0)
"""The pauses between attempts to connect while a broker refuses the connection: at most 5 s."""
LASTED_SECONDS = 1.0
"""How long a connection stands before its end is a loss, after which a new one is opened at once."""
OLDEST = (3, 10)
EXAMPLE = "amqps://user:password@host:5671/vhost?cafile=/path/to/ca.pem"
PARAMETERS = ("auth", "cadata", "cafile", "capath", "certfile", "keyfile", "timeout")
"""The parameters of a broker's URL; heartbeat and name are Coditect's own."""

_NOT_OPENED: tuple[type[BaseException], ...] = (*LOST, CoditectError)
_NOT_CLOSED: tuple[type[BaseException], ...] = (*LOST, AttributeError)

Restore = Callable[[AbstractConnection], Awaitable[None]]


class _Connection(aiormq.Connection):
    """A connection of aiormq with a write queue of 2048 entries, and a typed error for calls that its close ends."""

    FRAME_BUFFER_SIZE = 2048

    async def close(self, exc: ExceptionType | None = asyncio.CancelledError, timeout: TimeoutType = None) -> None:
        """Close the connection, and end pending calls with `exc`, or with ConnectionClosed where `exc` is None.

        aiormq would raise a bare `Exception` then.
        """
        await super().close(exc or ConnectionClosed(0, "The broker closed the connection"), timeout)


class RabbitConnection:
    """A connection to RabbitMQ that reconnects; `restore` runs on each new connection before any other use.

    Of several hosts the first that answers is taken, and another after a loss.
    """

    def __init__(
        self, url: str, *, name: str, path: WirePath, restore: Restore, heartbeat_seconds: int | None = None
    ) -> None:
        self.name = name
        beat = str(heartbeat_seconds or HEARTBEAT_SECONDS)
        self._hosts = deque(one.update_query(heartbeat=beat, name=name) for one in hosts_of(url))
        self._restore = restore
        self.path = path
        self._up = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._transport = Transport(install=path.install)
        self._question: Question | None = None
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

    async def first(self, seconds: float) -> None:
        """Wait until the first connection is open; raise after the given seconds, or at once when the set-up is wrong.

        Raises:
            BrokerUnavailable: when there is none in time, with the reason; retryable.
            SetupError: when the set-up is wrong, with the reason.
        """
        waits = [asyncio.ensure_future(event.wait()) for event in (self._up, self._hopeless)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
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
            await self._close()
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
        return (CLOSED if away else REFUSED).pause(failures + 1) * self._random.uniform(0.5, 1.0)

    async def _until_lost(self, connection: AbstractConnection) -> None:
        """Wait until the connection is lost; cut it when it is silent while the broker answers new connections.

        By this a dead path is left early, and a broker that stands still altogether costs no redelivery: its
        connections end only by aiormq's own limit of three heartbeats. The question is Coditect's, not AMQP's
        heartbeat: an event loop that was busy for seconds has its answer as soon as it reads again.
        """
        closing = connection.closing
        while not closing.done() and not canceled_by_us():
            quiet_in = 0.0 if self._heard_nothing else QUIET_SECONDS - self._transport.silent_seconds
            await asyncio.wait({closing}, timeout=max(LOOK_SECONDS, quiet_in))
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
        if connection is None or connection.is_closed or self._question is None:
            return False
        answer = self._question.ask()
        await asyncio.wait({answer}, timeout=ANSWER_SECONDS)
        return answer.done() and not answer.cancelled() and answer.result()

    async def _open(self) -> AbstractConnection | None:
        connection = _Connection(self._url, transport_factory=self._transport, limit=2**20)
        try:
            async with asyncio.timeout(CONNECT_SECONDS) as limit:
                with self._passing_over(limit):
                    await connection.connect()
                self._connection, self._question = connection, None
                self._check_version()
                self._question = await self.path.question(connection)  # now: a dead path would keep an opening channel
            async with asyncio.timeout(RESTORE_SECONDS):
                await self._restore(connection)
        except asyncio.CancelledError:
            if canceled_by_us():
                raise
            return None
        except _NOT_OPENED as error:
            self._note(error)
            await _quietly_close(connection)
            return None
        if self._away:
            log.info("The broker's connection stands again", extra=self._facts)
        self._away, self.last_error = False, None
        self._noted.clear()
        self._up.set()
        return connection

    @contextmanager
    def _passing_over(self, limit: asyncio.Timeout) -> Iterator[None]:
        """Within the block, end the time limit after 2 s if the host has sent nothing and there is another to try."""

        def look() -> None:
            if not self._transport.greeted and not limit.expired():
                limit.reschedule(loop.time())

        loop = asyncio.get_running_loop()
        timer = loop.call_later(GREETED_SECONDS, look) if len(self._hosts) > 1 else None
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
        if self.server.product == "RabbitMQ" and self.server.version < OLDEST:
            version = ".".join(map(str, self.server.version))
            raise UnsupportedBroker("RabbitMQ 3.10 or newer is needed", version=version, url=self.address)

    async def _close(self) -> None:
        if self._connection is not None:
            await _quietly_close(self._connection)
        self.abort()

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
    if any(one.scheme != first.scheme for one in whole):
        fix = f"CODITECT_AMQP_URL={EXAMPLE},other:5671"
        raise SetupError(
            "Some addresses of the broker use TLS, and others do not", variable="CODITECT_AMQP_URL", fix=fix
        )
    return (first, *whole)


def _broker_url(text: str) -> URL:
    check_address(text, "CODITECT_AMQP_URL", example=EXAMPLE, parameters=PARAMETERS)
    try:
        url = URL(text)
        known = url.scheme in ("amqp", "amqps") and url.explicit_port != 0
    except ValueError:
        known = False
    if not known:  # what yarl says may hold the password
        fix = f"CODITECT_AMQP_URL={EXAMPLE}"
        raise SetupError("This is no address of a broker", variable="CODITECT_AMQP_URL", fix=fix)
    return url


def _like(first: URL, other: URL) -> URL:
    if other.user is not None:  # what looks like a second host is the end of a password with a comma
        fix = "%2C for , in user and password; a whole URL for a host with a user of its own"
        raise SetupError("A host after a comma has a user", variable="CODITECT_AMQP_URL", fix=fix)
    return first.with_host(other.host or "localhost").with_port(other.explicit_port)


def _end_of(connection: AbstractConnection) -> str:
    closing = connection.closing
    return repr(closing.exception()) if closing.done() and not closing.cancelled() else "canceled"


async def _quietly_close(connection: AbstractConnection) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.close()
    except asyncio.CancelledError:
        if canceled_by_us():
            raise
    except _NOT_CLOSED as error:
        # aiormq has no reader or writer task yet when the handshake failed (AttributeError)
        log.debug("Closing a broken connection failed", extra={"reason": repr(error)})


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value or "")


def _version(text: str) -> tuple[int, ...]:
    numbers = re.split(r"[+-]", text, maxsplit=1)[0].split(".")
    return tuple(int(number) for number in numbers if number.isdigit())
