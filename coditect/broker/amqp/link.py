"""One connection to RabbitMQ that stands again after every loss.

aiormq is used without aio-pika's robust layer: what has to be restored (topology, subscriptions, credit) is
known to the inlet alone, so restoring lives in one place (docs/adr/0002-aiormq-without-the-robust-layer.md).
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable

import aiormq
from aiormq.abc import AbstractConnection, ExceptionType, TimeoutType
from aiormq.exceptions import ConnectionClosed
from yarl import URL

from coditect.broker.amqp.channels import close_quietly, open_channel
from coditect.broker.amqp.faults import LOST, canceled_by_us, unreachable
from coditect.broker.amqp.lenient import read_leniently
from coditect.broker.amqp.path import WirePath
from coditect.broker.amqp.transport import Transport
from coditect.broker.port import ServerInfo
from coditect.errors import CoditectError, SetupError, UnsupportedBroker

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5
LOOK_SECONDS = 0.5
SILENT_SECONDS = HEARTBEAT_SECONDS + 1.0
"""An idle broker is heard every `HEARTBEAT_SECONDS`."""
ANSWER_SECONDS = 1.0
CONNECT_SECONDS = 5.0
CLOSE_SECONDS = 2.0
RESTORE_SECONDS = 30.0
PAUSE_SECONDS = 0.2
OLDEST = (3, 10)

_NOT_OPENED: tuple[type[BaseException], ...] = (*LOST, CoditectError)
_NOT_CLOSED: tuple[type[BaseException], ...] = (*LOST, AttributeError)

Restore = Callable[[AbstractConnection], Awaitable[None]]


class _Connection(aiormq.Connection):
    """aiormq's connection with a write queue that holds a confirm window's frames."""

    FRAME_BUFFER_SIZE = 2048

    async def close(self, exc: ExceptionType | None = asyncio.CancelledError, timeout: TimeoutType = None) -> None:
        """As aiormq's, which ends pending calls with a bare `Exception` when the peer closed between two frames."""
        await super().close(exc or ConnectionClosed(0, "The broker closed the connection"), timeout)


class Link:
    """Keeps one connection; `restore` runs on every new one before anybody else may use it."""

    def __init__(self, url: str, *, name: str, path: WirePath, restore: Restore) -> None:
        self._url = URL(url).update_query(heartbeat=str(HEARTBEAT_SECONDS), name=name)
        self._restore = restore
        self.path = path
        self._up = asyncio.Event()
        self._connection: AbstractConnection | None = None
        self._transport = Transport(self._url, tap=path.tap)
        self._random = random.Random()  # noqa: S311 - jitter, not a secret
        self._hopeless = asyncio.Event()
        self._over = False
        self.last_error: BaseException | None = None

    @property
    def up(self) -> bool:
        """Whether the connection stands and is restored."""
        return self._up.is_set() and not self._over

    @property
    def server(self) -> ServerInfo:
        """Who answered last."""
        properties = getattr(self._connection, "server_properties", None) or {}
        return ServerInfo(_text(properties.get("product")), _version(_text(properties.get("version"))))

    async def connection(self) -> AbstractConnection:
        """The standing connection; waits for it without limit. Raises ConnectionError when there will be none."""
        while True:
            await self._up.wait()
            if self._over:
                raise ConnectionError("The link is closed")
            if self._connection is not None and not self._connection.is_closed:
                return self._connection
            await asyncio.sleep(0)

    async def first(self, seconds: float) -> None:
        """Waits for the first connection.

        Raises: BrokerUnavailable or SetupError with the reason.
        """
        waits = [asyncio.ensure_future(event.wait()) for event in (self._up, self._hopeless)]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not self.up:
            raise unreachable(str(self._url), self.last_error) from self.last_error

    async def run(self) -> None:
        """Opens, restores, waits for the loss, and again, until canceled."""
        read_leniently()
        try:
            while not canceled_by_us():
                connection = await self._open()
                if connection is None:
                    await asyncio.sleep(PAUSE_SECONDS * (1 + self._random.random()))
                    continue
                await self._until_lost(connection)
                self._up.clear()
                log.warning("The broker's connection was lost", extra={"link": self._url.query.get("name")})
        finally:
            self._up.clear()
            await self._close()
            self._over = True
            self._up.set()

    async def _until_lost(self, connection: AbstractConnection) -> None:
        """Gives up a connection that answers nothing while the broker greets somebody new.

        So a dead path is left early, and a broker that stands still altogether costs no redelivery: its
        connections end by aiormq's own limit of 18 s alone.
        """
        closing = connection.closing
        while not closing.done() and not canceled_by_us():
            await asyncio.wait({closing}, timeout=LOOK_SECONDS)
            if self._is_silent and await self._transport.is_greeted_anew() and not await self._answers(connection):
                log.warning("A silent connection is replaced", extra={"link": self._url.query.get("name")})
                self.abort()

    @property
    def _is_silent(self) -> bool:
        return self._transport.silent_seconds > SILENT_SECONDS

    async def _answers(self, connection: AbstractConnection) -> bool:
        """Whether anything comes back when something is asked."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await close_quietly(await open_channel(connection))
        except asyncio.CancelledError:
            if canceled_by_us():
                raise
        except LOST as error:
            log.debug("A silent connection does not answer", extra={"reason": repr(error)})
        return not self._is_silent

    async def _open(self) -> AbstractConnection | None:
        connection = _Connection(self._url, transport_factory=self._transport, limit=2**20)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.connect()
            self._connection = connection
            self._check_version()
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
        if self.last_error is not None:
            log.info("The broker's connection stands again", extra={"link": self._url.query.get("name")})
            self.last_error = None
        self._up.set()
        return connection

    def _note(self, error: BaseException) -> None:
        if type(error) is not type(self.last_error):
            log.warning("The broker cannot be reached, trying on", extra={"reason": repr(error)})
        self.last_error = error
        if isinstance(unreachable(str(self._url), error), SetupError):
            self._hopeless.set()

    def _check_version(self) -> None:
        if self.server.product == "RabbitMQ" and self.server.version < OLDEST:
            raise UnsupportedBroker("RabbitMQ 3.10 or newer is needed", version=".".join(map(str, self.server.version)))

    async def _close(self) -> None:
        if self._connection is not None:
            await _quietly_close(self._connection)
        self.abort()

    def abort(self) -> None:
        """Cuts the transport, as a fault would."""
        self._transport.abort()


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
