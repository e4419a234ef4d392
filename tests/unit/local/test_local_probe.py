import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from coditect.errors import SetupError
from coditect.local.errors import ServerUnreachable
from coditect.local.probe import (
    broker_answers,
    broker_version,
    port_open,
    redis_answers,
    redis_version,
    usable_redis_version,
)

START = b"\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x20\x07versionS\x00\x00\x00\x063.10.8\x00\x00\x00\x05PLAIN"
INFO = b"# Server\r\nredis_version:7.0.15\r\n"


@asynccontextmanager
async def a_server(answer: Callable[[bytes], bytes]) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while heard := await reader.read(1_000):
                writer.write(answer(heard))
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def a_frame(payload: bytes) -> bytes:
    return b"\x01\x00\x00" + len(payload).to_bytes(4) + payload + b"\xce"


def redis_answer(heard: bytes) -> bytes:
    if b"AUTH" in heard:
        return b"+OK\r\n" if b"secret" in heard else b"-WRONGPASS invalid\r\n"
    return b"$%d\r\n%s\r\n" % (len(INFO), INFO) if b"INFO" in heard else b"+PONG\r\n"


async def test_version_is_read_from_the_handshake_of_any_of_several_brokers() -> None:
    async with a_server(lambda _: a_frame(START)) as port:
        assert await broker_version(f"amqp://127.0.0.1:{port}") == "3.10.8"
        assert await broker_answers(f"amqp://127.0.0.1:{port}")()
        assert await port_open(port)()

        assert await broker_version(f"amqp://user:secret@127.0.0.1:1,127.0.0.1:{port}") == "3.10.8"

    with pytest.raises(ServerUnreachable):
        await broker_version("amqp://127.0.0.1:1,127.0.0.1:2")


async def test_sentinels_that_name_no_master_are_no_redis() -> None:
    with pytest.raises(ServerUnreachable, match="No Redis"):
        await redis_version("redis+sentinel://:secret@127.0.0.1:1,127.0.0.1:2/mymaster/0")


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_authority_that_cannot_be_read_is_named(content: str | None, tmp_path: Path) -> None:
    named = tmp_path / "ca.pem"
    if content is not None:
        named.write_text(content)

    with pytest.raises(SetupError) as refused:
        await broker_version(f"amqps://u:p@127.0.0.1:1/?cafile={named}")

    assert f"cafile={named}" in str(refused.value.facts["fix"])


async def test_broker_without_version_is_unknown() -> None:
    async with a_server(lambda _: a_frame(START[:10])) as port:
        assert await broker_version(f"amqp://127.0.0.1:{port}") == "unknown"


@pytest.mark.parametrize("answer", [b"AMQP\x00\x01\x00\x00....", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_other_protocol_is_no_broker(answer: bytes) -> None:
    async with a_server(lambda _: answer) as port:
        with pytest.raises(ServerUnreachable):
            await broker_version(f"amqp://127.0.0.1:{port}", within_seconds=0.2)


async def test_silent_broker_is_unreachable_within_its_time() -> None:
    async with a_server(lambda _: b"") as port:
        with pytest.raises(ServerUnreachable, match="TimeoutError"):
            await broker_version(f"amqp://127.0.0.1:{port}", within_seconds=0.1)


async def test_redis_version_is_read_after_sign_in_and_a_wrong_password_stays_out_of_the_text() -> None:
    async with a_server(redis_answer) as port:
        assert await redis_version(f"redis://:secret@127.0.0.1:{port}/0") == "7.0.15"
        assert await redis_version(f"redis://127.0.0.1:{port}") == "7.0.15"
        assert await redis_answers(f"redis://:secret@127.0.0.1:{port}/0")()

        with pytest.raises(ServerUnreachable, match="AuthenticationError"):
            await redis_version(f"redis://:wrong@127.0.0.1:{port}/0")
        assert not await redis_answers(f"redis://:wrong@127.0.0.1:{port}/0")()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$many\r\n", b":1\r\n", b"x" * 200_000])
async def test_other_protocol_is_no_redis(answer: bytes) -> None:
    async with a_server(lambda _: answer) as port:
        with pytest.raises(ServerUnreachable):
            await redis_version(f"redis://127.0.0.1:{port}", within_seconds=0.2)


@pytest.mark.parametrize(
    "words", ["DENIED Redis is running in protected mode", "ERR max number of clients reached"], ids=["mode", "clients"]
)
async def test_redis_that_refuses_each_connection_is_told_in_its_words(words: str) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"-{words}\r\n".encode())
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
        with pytest.raises(SetupError, match="refuses connections") as refused:
            await usable_redis_version(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}")

    assert words in str(refused.value.facts["fix"])


@pytest.mark.parametrize("answer", [b"+PONG\r\n", b"-NOAUTH Authentication required.\r\n"])
async def test_redis_without_tls_is_told_apart_from_none(answer: bytes) -> None:
    def by_line(heard: bytes) -> bytes:
        return answer if heard == b"PING\r\n" else b""

    async with a_server(by_line) as port:
        with pytest.raises(SetupError, match="without TLS"):
            await usable_redis_version(f"rediss://127.0.0.1:{port}", within_seconds=0.5)
    async with a_server(lambda _: b"") as port:
        with pytest.raises(ServerUnreachable):
            await usable_redis_version(f"rediss://127.0.0.1:{port}", within_seconds=0.3)


async def test_redis_before_6_has_a_version() -> None:
    def answer(heard: bytes) -> bytes:
        if b"HELLO" in heard:
            return b"-ERR unknown command `HELLO`, with args beginning with: `2`, \r\n"
        return b"$2\r\nab\r\n" if b"LOAD" in heard else b"$-1\r\n" if b"EVALSHA" in heard else redis_answer(heard)

    async with a_server(answer) as port:
        assert await usable_redis_version(f"redis://127.0.0.1:{port}") == "7.0.15"


async def test_closed_port_is_unreachable() -> None:
    async with a_server(lambda _: b"") as port:
        pass

    assert not await port_open(port)()
    assert not await broker_answers(f"amqp://127.0.0.1:{port}")()
    with pytest.raises(ServerUnreachable) as caught:
        await broker_version(f"amqp://user:secret@127.0.0.1:{port}")
    assert "secret" not in str(caught.value)
