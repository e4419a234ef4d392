"""Probes that tell whether a broker or Redis really answers at an address, by an AMQP handshake or Redis commands.

A port that accepts a connection proves little: a broker that is still recovering its queues may do that. So the probe
speaks the first words of each protocol (AMQP 0-9-1 section 4.2.2, Redis' inline commands) over plain asyncio.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from coditect.broker.rabbitmq.connection import hosts_of
from coditect.errors import RegistryUnavailable, SetupError
from coditect.local.errors import ServerUnreachable
from coditect.local.supervisor import Probe
from coditect.registry.redis import SENTINELS, RedisConnection

_CONNECTION_START = b"\x00\x0a\x00\x0a"
_VERSION = re.compile(rb"\x07versionS(.{4})", re.DOTALL)
_REDIS_REPLY = re.compile(r"\+.*|\$\d+")

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def broker_version(url: str, *, within_seconds: float = 2.0) -> str:
    """Return the version of the broker at `url`, or at the first of its hosts that opens an AMQP 0-9-1 handshake.

    The probe does not sign in. `within_seconds` bounds each host.

    Raises:
        ServerUnreachable: nothing answers in time, or something that is no AMQP 0-9-1 broker; retryable.
    """
    *others, last = (str(host) for host in hosts_of(url))
    for host in others:
        with suppress(ServerUnreachable):
            return await _broker_version(host, within_seconds)
    return await _broker_version(last, within_seconds)


async def _broker_version(url: str, within_seconds: float) -> str:
    async with _reach(url, default_port=5672, tls_scheme="amqps", within_seconds=within_seconds) as (
        reader,
        writer,
    ):
        writer.write(b"AMQP\x00\x00\x09\x01")
        header = await reader.readexactly(7)
        start = await reader.readexactly(min(int.from_bytes(header[3:7]), 131_072))
        if header[:1] != b"\x01" or start[:4] != _CONNECTION_START:
            raise ServerUnreachable("This is no AMQP 0-9-1 broker", address=_address(url))
        found = _VERSION.search(start)
        if found is None:
            return "unknown"
        return start[found.end() : found.end() + int.from_bytes(found[1])].decode(errors="replace")


async def redis_version(url: str, *, within_seconds: float = 2.0) -> str:
    """Return the version of the Redis that answers PING at `url`, signed in with the password in the address.

    With sentinels it is the version of the master that they name.

    Raises:
        ServerUnreachable: nothing answers in time, the server still loads its data, or refuses the password; retryable.
    """
    if url.startswith(SENTINELS):
        return await _version_under_sentinels(url, within_seconds)
    async with _reach(url, default_port=6379, tls_scheme="rediss", within_seconds=within_seconds) as (
        reader,
        writer,
    ):
        await _sign_in(url, reader, writer)
        await _redis_command(reader, writer, "PING")
        size = (await _redis_command(reader, writer, "INFO", "server"))[1:]
        text = (await reader.readexactly(int(size))).decode(errors="replace")
        found = re.search(r"redis_version:(\S+)", text)
        return found[1] if found else "unknown"


async def _version_under_sentinels(url: str, within_seconds: float) -> str:
    def unavailable(_: str, reason: str) -> RegistryUnavailable:
        return RegistryUnavailable("No master answers that the sentinels name", reason=reason)

    connection = RedisConnection(url, timeout_seconds=within_seconds, unavailable=unavailable)
    try:
        return await connection.version()
    except RegistryUnavailable as error:
        raise ServerUnreachable(error.sentence, reason=error.facts["reason"]) from error
    finally:
        await connection.close()


async def usable_redis_version(url: str, *, within_seconds: float = 2.0) -> str:
    """Return the version of the Redis at `url`, or of the master that sentinels name, if the programs can use it.

    Raises:
        SetupError: when it answers but cannot be used, or TLS fails; with the fix.
        ServerUnreachable: when nothing answers in time; retryable.
    """

    def unavailable(_: str, reason: str) -> RegistryUnavailable:
        return RegistryUnavailable("No Redis answers at this address", reason=reason)

    connection = RedisConnection(url, timeout_seconds=within_seconds, unavailable=unavailable)
    try:
        return await connection.usable_version()
    except RegistryUnavailable as error:
        _check_tls(error.__cause__, url)
        raise ServerUnreachable(error.sentence, reason=error.facts["reason"]) from error
    finally:
        await connection.close()


async def flush_redis(url: str, *, within_seconds: float = 10.0) -> None:
    """Remove everything from every database of the Redis at `url`.

    Raises:
        ServerUnreachable: nothing answers in time; retryable, and the data may have been removed or not.
    """
    async with _reach(url, default_port=6379, tls_scheme="rediss", within_seconds=within_seconds) as (
        reader,
        writer,
    ):
        await _sign_in(url, reader, writer)
        await _redis_command(reader, writer, "FLUSHALL")


def broker_answers(url: str) -> Probe:
    """Return a probe that tells whether the broker at `url` opens an AMQP handshake."""

    async def answers() -> bool:
        try:
            await broker_version(url)
        except ServerUnreachable:
            return False
        return True

    return answers


def redis_answers(url: str) -> Probe:
    """Return a probe that tells whether the Redis at `url` answers PING and has loaded its data."""

    async def answers() -> bool:
        try:
            await redis_version(url)
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
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
        return True

    return answers


@asynccontextmanager
async def _reach(url: str, *, default_port: int, tls_scheme: str, within_seconds: float) -> AsyncIterator[Streams]:
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(within_seconds):
            reader, writer = await asyncio.open_connection(
                parts.hostname or "127.0.0.1",
                parts.port or _default_port(parts, default_port, tls_scheme),
                ssl=_trusting(parts) if parts.scheme == tls_scheme else None,
            )
            try:
                yield reader, writer
            finally:
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        _check_tls(error, url)
        raise ServerUnreachable(
            "Nothing answers at this address",
            address=_address(url),
            reason=str(error) or type(error).__name__,
        ) from error


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


def _trusting(parts: SplitResult) -> ssl.SSLContext:
    """Return the TLS settings that trust the authority that an address names, or else the system's authorities."""
    query = dict(parse_qsl(parts.query))
    return ssl.create_default_context(cafile=query.get("cafile", query.get("ssl_ca_certs")), capath=query.get("capath"))


def _default_port(parts: SplitResult, plain: int, tls_scheme: str) -> int:
    return 5671 if parts.scheme == tls_scheme == "amqps" else plain


def _address(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port}" if parts.port else f"{parts.scheme}://{parts.hostname}"


async def _sign_in(url: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    parts = urlsplit(url)
    if parts.password:
        await _redis_command(reader, writer, "AUTH", unquote(parts.username or "default"), unquote(parts.password))


async def _redis_command(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *words: str) -> str:
    """Send one command to Redis in RESP, and return the first line of the answer: a status, or the length of a text.

    Raises:
        ServerUnreachable: the answer is an error, which begins with `-`, or is no answer of Redis.
    """
    encoded = [word.encode() for word in words]
    writer.write(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
    line = (await reader.readuntil(b"\r\n")).decode(errors="replace").strip()
    if line.startswith("-"):
        raise ServerUnreachable("Redis refuses the connection", reason=line[1:])
    if not _REDIS_REPLY.fullmatch(line):
        raise ServerUnreachable("This is no Redis", reason=f"it answers {line[:100]!r}")
    return line
