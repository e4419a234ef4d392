"""The translation of aiormq's errors into Coditect's."""

from __future__ import annotations

import re
import ssl

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

from coditect.aio.cancellation import cancellations
from coditect.errors import BrokerUnavailable, CoditectError, NotFound, SetupError, TooLarge, TopologyMismatch

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
            fix="coditect topology plan shows the difference and what to do",
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
