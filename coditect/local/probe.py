"""Probes that tell whether a broker or Redis really answers at an address, by an AMQP handshake or Redis commands.

A port that accepts a connection proves little: a broker that is still recovering its queues may do that. So the probe
speaks the first words of AMQP 0-9-1 (section 4.2.2) over plain asyncio, and asks Redis by the registry's connection.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

from coditect.broker.rabbitmq.connection import hosts_of
from coditect.errors import RegistryUnavailable, SetupError
from coditect.local.errors import ServerUnreachable
from coditect.local.supervisor import Probe
from coditect.registry.redis import RedisConnection
from coditect.settings.addresses import trusting

_CONNECTION_START = b"\x00\x0a\x00\x0a"
_VERSION = re.compile(rb"\x07versionS(.{4})", re.DOTALL)

_REFUSALS = ("-DENIED ", "-ERR max number of clients")
"""How a Redis begins that closes a connection at once: in protected mode, or with all its clients."""
UNASKED_SECONDS = 0.2
"""How long a Redis that refuses a connection may take to say so."""

Answer = TypeVar("Answer")


async def broker_version(url: str, *, within_seconds: float = 2.0) -> str:
    """Return the version of the broker at `url`, or at the first of its hosts that opens an AMQP 0-9-1 handshake.

    The probe does not sign in. `within_seconds` bounds each host.

    Raises:
        SetupError: TLS fails, or the address is wrong; with the fix.
        ServerUnreachable: nothing answers in time, or something that is no AMQP 0-9-1 broker; retryable.
    """
    *others, last = (str(host) for host in hosts_of(url))
    for host in others:
        with suppress(ServerUnreachable):
            return await _broker_version(host, within_seconds)
    return await _broker_version(last, within_seconds)


async def _broker_version(url: str, within_seconds: float) -> str:
    parts = urlsplit(url)
    tls = parts.scheme == "amqps"
    port = parts.port or (5671 if tls else 5672)
    trusted = trusting(dict(parse_qsl(parts.query)), "CODITECT_AMQP_URL") if tls else None
    try:
        async with asyncio.timeout(within_seconds):
            reader, writer = await asyncio.open_connection(parts.hostname or "127.0.0.1", port, ssl=trusted)
            try:
                writer.write(b"AMQP\x00\x00\x09\x01")
                header = await reader.readexactly(7)
                start = await reader.readexactly(min(int.from_bytes(header[3:7]), 131_072))
            finally:
                await _hang_up(writer)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        _check_tls(error, url)
        reason = str(error) or type(error).__name__
        raise ServerUnreachable("Nothing answers at this address", address=_address(url), reason=reason) from error
    if header[:1] != b"\x01" or start[:4] != _CONNECTION_START:
        raise ServerUnreachable("This is no AMQP 0-9-1 broker", address=_address(url))
    found = _VERSION.search(start)
    if found is None:
        return "unknown"
    return start[found.end() : found.end() + int.from_bytes(found[1])].decode(errors="replace")


async def _hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()


async def redis_version(url: str, *, within_seconds: float = 2.0) -> str:
    """Return the version of the Redis that answers PING at `url`, or of the master that sentinels name.

    Raises:
        ServerUnreachable: nothing answers in time, the server still loads its data, or refuses the password; retryable.
    """

    async def version(connection: RedisConnection) -> str:
        if not await connection.bounded("ping", connection.redis.ping()):  # INFO alone is answered while data is loaded
            raise ServerUnreachable("This is no Redis", address=_address(url))
        return await connection.version()

    return await ask_redis(url, version, within_seconds=within_seconds)


async def usable_redis_version(url: str, *, within_seconds: float = 2.0) -> str:
    """Return the version of the Redis at `url`, or of the master that sentinels name, if the programs can use it.

    Raises:
        SetupError: when it answers but cannot be used, or TLS fails; with the fix.
        ServerUnreachable: when nothing answers in time; retryable.
    """
    try:
        return await ask_redis(url, RedisConnection.usable_version, within_seconds=within_seconds)
    except ServerUnreachable:
        await _check_refusal(url, within_seconds)
        raise


async def _check_refusal(url: str, within_seconds: float) -> None:
    """Check that no Redis speaks unencrypted at a URL that cannot be reached: it would refuse us, or have no TLS.

    redis-py writes first, and does not see what a Redis says that closes each connection at once.

    Raises:
        SetupError: otherwise, with what Redis says.
    """
    parts = urlsplit(url)
    said = ""
    if parts.scheme in ("redis", "rediss"):
        with suppress(OSError, TimeoutError, ValueError):
            async with asyncio.timeout(within_seconds):
                said = await _said(parts.hostname or "localhost", parts.port or 6379)
    if said.startswith(_REFUSALS):
        fix = f"correct in Redis, or in CODITECT_REDIS_URL, what Redis says: {said[1:300]}"
        raise SetupError("Redis refuses connections", address=_address(url), fix=fix)
    if said and parts.scheme == "rediss":
        fix = "name the port for TLS in CODITECT_REDIS_URL, or write redis:// in place of rediss://"
        raise SetupError("Redis answers at this address without TLS", address=_address(url), fix=fix)


async def _said(host: str, port: int) -> str:
    """Return the first line that a Redis says without TLS, unasked or to PING; nothing for another server."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        with suppress(TimeoutError):
            line = await asyncio.wait_for(reader.readline(), UNASKED_SECONDS)
            return line.decode(errors="replace").strip() if line[:1] == b"-" else ""
        writer.write(b"PING\r\n")
        line = await reader.readline()
        return line.decode(errors="replace").strip() if line[:1] in (b"-", b"+") else ""
    finally:
        await _hang_up(writer)


async def ask_redis(url: str, ask: Callable[[RedisConnection], Awaitable[Answer]], *, within_seconds: float) -> Answer:
    """Return what `ask` gets from the Redis at `url`, or from the master that sentinels name.

    Raises:
        SetupError: when TLS fails; with the fix.
        ServerUnreachable: when nothing answers in time; retryable.
    """

    def unavailable(_: str, reason: str) -> RegistryUnavailable:
        return RegistryUnavailable("No Redis answers at this address", reason=reason)

    connection = RedisConnection(url, timeout_seconds=within_seconds, unavailable=unavailable)
    try:
        return await ask(connection)
    except RegistryUnavailable as error:
        _check_tls(error.__cause__, url)
        raise ServerUnreachable(error.sentence, reason=error.facts["reason"]) from error
    finally:
        await connection.close()


def broker_answers(url: str) -> Probe:
    """Return a probe that tells whether the broker at `url` opens an AMQP handshake."""
    return _answers(broker_version, url)


def redis_answers(url: str) -> Probe:
    """Return a probe that tells whether the Redis at `url` answers PING and has loaded its data."""
    return _answers(redis_version, url)


def _answers(version_of: Callable[[str], Awaitable[str]], url: str) -> Probe:
    async def answers() -> bool:
        try:
            await version_of(url)
        except ServerUnreachable:
            return False
        return True

    return answers


def port_open(port: int) -> Probe:
    """Return a probe that tells whether a port of the loopback interface accepts connections."""

    async def answers() -> bool:
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), 2.0)
        except (OSError, TimeoutError):
            return False
        await _hang_up(writer)
        return True

    return answers


def _check_tls(error: BaseException | None, url: str) -> None:
    """Check that an error has another cause than TLS, such as a certificate that is not trusted or cannot be read.

    Raises:
        SetupError: when TLS is the cause.
    """
    of_tls = (ssl.SSLError, FileNotFoundError, PermissionError) if url.startswith(("amqps:", "rediss")) else ()
    while error is not None:
        if isinstance(error, of_tls):
            reason = getattr(error, "verify_message", "") or str(error)
            fix = f"correct host, port and certificates in the address; TLS says: {reason}"
            raise SetupError("TLS to the server fails", address=_address(url), fix=fix) from error
        error = error.__cause__ or error.__context__


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port}" if parts.port else f"{parts.scheme}://{parts.hostname}"
