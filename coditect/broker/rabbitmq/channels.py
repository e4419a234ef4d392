"""aiormq's channels, opened and closed within a time limit, its errors in Coditect's terms, and its version check."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from aiormq.abc import AbstractConnection
from aiormq.channel import Channel
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from yarl import URL

from coditect.aio.supervisor import cancellations, heeded
from coditect.errors import BrokerUnavailable, CoditectError, NotFound, SetupError, TooLarge, TopologyMismatch

log = logging.getLogger(__name__)

CHANNEL_CALL_SECONDS = 10.0
UNBOUNDED_FRAMES = 0
"""The bound of a channel's unread frames: aiormq reads no frame of any channel while it waits for one to have room.

A channel that was closed while its queue hung is never read again, and would stop its connection for ever. Prefetch and
confirms bound what the broker sends.
"""
TESTED_AIORMQ = ">=7.2.4,<7.3"
"""The versions of aiormq that Coditect is tested with and requires."""
CONNECTION_PARTS = (
    "channel", "channels", "close", "closing", "connection_tune", "create_future", "is_closed", "is_opened", "ready",
    "server_properties", "write_queue",
)  # fmt: skip
"""What Coditect uses of aiormq's connection, beside `connect` with a `TransportFactory`."""
CHANNEL_PARTS = (
    "basic_cancel", "basic_consume", "basic_get", "basic_qos", "close", "closing", "connection", "create_task",
    "frames", "is_closed", "number", "on_consumer_cancel_callbacks", "queue_declare", "queue_delete", "queue_unbind",
    "rpc_frames", "write_queue",
)  # fmt: skip
"""What Coditect uses of aiormq's channels."""


def check_library(found: object, parts: Iterable[str]) -> None:
    """Check that aiormq's connection or channel has the attributes that Coditect uses.

    Raises:
        SetupError: when one is missing, as in a version that Coditect was not tested with.
    """
    if missing := [name for name in parts if not hasattr(found, name)]:
        raise SetupError(
            "The installed aiormq lacks what Coditect's frames rely on",
            version=version("aiormq"),
            missing=", ".join(missing),
            fix=f"pip install 'aiormq{TESTED_AIORMQ}'",
        )


async def open_channel(connection: AbstractConnection, *, confirms: bool = False) -> Channel:
    """Open a channel on a connection, with publisher confirms if `confirms`, within a time limit.

    Raises:
        Exception: any of `channels.LOST`, when the connection is lost.
        SetupError: when the installed aiormq is not one that Coditect works with.
    """
    with heeded():  # else a publish would outlive its deadline
        channel = await connection.channel(
            publisher_confirms=confirms,
            frame_buffer_size=UNBOUNDED_FRAMES,
            timeout=CHANNEL_CALL_SECONDS,
            on_return_raises=True,
        )
    if not isinstance(channel, Channel):
        raise RuntimeError("aiormq gave a channel of an unknown kind")
    check_library(channel, CHANNEL_PARTS)
    return channel


async def close_quietly(channel: Channel) -> None:
    """Close a channel, within 10 s, unless it is closed already; a failure is raised."""
    if not channel.is_closed:
        await channel.close(timeout=CHANNEL_CALL_SECONDS)


async def give_up(channel: Channel) -> None:
    """Close a channel and only log a failure; pending calls on the channel end."""
    with tolerating_loss("Closing a channel failed"):
        await close_quietly(channel)


def is_blocked(connection: AbstractConnection) -> bool:
    """Tell whether the broker has an alarm and stops publishes on the connection.

    Taking the first step of a wait answers that without a timer.
    """
    wait = connection.ready()
    try:
        wait.send(None)
    except StopIteration:
        return False
    wait.close()
    return True


LOST: tuple[type[BaseException], ...] = (AMQPError, ConnectionError, OSError, RuntimeError, TimeoutError, EOFError)
"""The error types that a call on a lost connection or channel may raise, RuntimeError included."""
_AWAY = re.compile(r"down or inaccessible|stopped by supervisor|crashed|due to timeout")
"""A pattern of the reasons for which RabbitMQ answers 404 for a queue that exists."""
_OVERSIZE = re.compile(r"message size (\d+) .*?larger than .*?(\d+)")


def canceled_by_us() -> bool:
    """Tell whether somebody canceled the current asyncio task, so that a CancelledError is not aiormq's own.

    aiormq ends pending calls of a stuck connection with a CancelledError that no caller requested; taking it for a real
    cancellation would end a publisher silently. And Python 3.11's `wait_for`, which aiormq uses, swallows a
    cancellation that arrives together with the awaited result: so endless loops call this function, too.
    """
    return cancellations() > 0


@contextmanager
def tolerating_loss(event: str, *more: type[BaseException], level: int = logging.DEBUG, **facts: str) -> Iterator[None]:
    """Run a block that the loss of its channel or connection, or an error of the types `more`, ends, which is logged.

    The rest of the block is not needed then, or is done later.
    """
    ends: tuple[type[BaseException], ...] = (asyncio.CancelledError, *LOST, *more)
    try:
        yield
    except ends as error:
        if isinstance(error, asyncio.CancelledError) and canceled_by_us():
            raise
        log.log(level, event, extra={**facts, "reason": repr(error)})


def shown(url: str) -> str:
    """Return the broker's URL without user, password and query, for people; "the broker" for an empty URL."""
    return str(URL(url).with_password(None).with_user(None).with_query(None)) if url else "the broker"


def unreachable(url: str, error: BaseException | None) -> CoditectError:
    """Return a failed connection's error: a SetupError, as for a wrong user or certificate, or else BrokerUnavailable.

    A SetupError that is given is returned as it is. A refused virtual host is a BrokerUnavailable.
    """
    address = shown(url)
    if isinstance(error, SetupError):
        return error
    if isinstance(error, AuthenticationError | ProbableAuthenticationError):
        return SetupError(
            "The broker refused the user or password", url=address, fix="check the user in CODITECT_AMQP_URL"
        )
    if isinstance(error, InvalidFrameError) and "Connection.Close" in str(error):  # in place of OpenOk; it says no more
        return BrokerUnavailable(
            "The broker refuses the virtual host: there is none of this name, or this user may not enter it",
            url=address,
            fix="check the last part of CODITECT_AMQP_URL, and `rabbitmqctl list_vhosts` and `list_permissions`",
        )
    if error is not None and isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return SetupError(
            "The broker's certificate is not trusted",
            url=address,
            reason=error.__cause__.verify_message,
            fix="name its authority in CODITECT_AMQP_URL: ?cafile=/path/to/ca.pem",
        )
    if isinstance(error, FileNotFoundError | PermissionError | ssl.SSLError):  # one of a connection is an AMQPError
        return SetupError(
            "A certificate or key that CODITECT_AMQP_URL names cannot be read",
            url=address,
            reason=repr(error)[:200],
            fix="correct the paths after the ?: cafile, certfile and keyfile name PEM files, capath a folder",
        )
    return BrokerUnavailable(
        "The broker cannot be reached",
        url=address,
        reason=repr(error)[:200],
        fix="start it with `coditect up`, or point CODITECT_AMQP_URL to it",
    )


def refusal(error: BaseException, *, entity: str) -> CoditectError | None:
    """Return Coditect's error when the broker closed a channel because of the exchange or queue `entity`, else None."""
    text = str(error)
    if not entity or f"'{entity}'" not in text:
        return None
    if is_away(error):
        return away(entity, error)
    if isinstance(error, ChannelNotFoundEntity):
        return NotFound("The broker has no such exchange or queue", entity=entity, fix="coditect topology apply")
    if isinstance(error, ChannelPreconditionFailed):
        return TopologyMismatch(
            "The broker holds it with other arguments",
            entity=entity,
            broker=text,
            fix="coditect topology apply --dry-run shows the difference and what to do",
        )
    if isinstance(error, ChannelAccessRefused):
        fix = "have `rabbitmqctl set_permissions` let the user of CODITECT_AMQP_URL configure, write and read"
        return SetupError("The broker's permissions do not allow it", entity=entity, broker=text, fix=fix)
    return None


def is_away(error: BaseException) -> bool:
    """Tell whether the broker closed a channel because a queue that exists cannot be reached, as on a dead node."""
    return isinstance(error, ChannelNotFoundEntity) and _AWAY.search(str(error)) is not None


def away(queue: str, error: BaseException) -> BrokerUnavailable:
    """Return the error for a call that needs a queue which exists and cannot be reached."""
    return BrokerUnavailable(
        "The node of the broker that has this queue is down",
        entity=queue,
        broker=str(error),
        fix="start the node; CODITECT_REPLY_QUEUE=quorum keeps every queue on several nodes",
    )


def oversize(error: BaseException, *, size: int) -> TooLarge | None:
    """Return Coditect's error for a channel that the broker closed because of a body of this size, else None.

    Publishes share a channel, and the other publishes on the closed channel are worth another try.
    """
    found = _OVERSIZE.search(str(error)) if isinstance(error, ChannelPreconditionFailed) else None
    if found is None or int(found[1]) != size:
        return None
    return TooLarge("The broker takes no body of this size", bytes=size, limit=int(found[2]))
