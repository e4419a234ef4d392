"""The use case of log levels: agents and dispatchers log more or less while they run."""

from __future__ import annotations

from importlib.util import find_spec

from coditect.errors import NotFound, Unroutable
from coditect.model.ids import AgentId
from coditect.operations.connections import Connections
from coditect.wire import control_messages, routing
from coditect.wire.control_messages import LogLevelOrder

SEND_SECONDS = 10.0
"""How long the broker may take to confirm the message."""


def is_module(logger: str) -> bool:
    """Tell whether a logger is named after a module that is installed here, with or without the leading `coditect.`.

    The loggers of an agent's own modules may have other names, and agents elsewhere other modules.
    """
    return any(map(_is_installed, (f"coditect.{logger}", logger)))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a package above it is missing, or the name is none
        return False


async def set_log_level(opened: Connections, order: LogLevelOrder, *, agent_id: str | None = None) -> None:
    """Send a logger's level to every agent and dispatcher, or to one agent; idempotent.

    Raises:
        NotFound: when no agent has the id, or nothing runs that could hear it.
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    to_one = None if agent_id is None else routing.mailbox_key(AgentId(agent_id))
    exchange, key = (routing.BROADCAST, "") if to_one is None else (routing.AGENTS, to_one)
    message = control_messages.log_level(order)
    async with opened.broker() as broker:
        try:
            await broker.publish(message, exchange=exchange, routing_key=key, timeout_seconds=SEND_SECONDS)
        except (NotFound, Unroutable) as error:
            sentence = "No agent and no dispatcher runs" if agent_id is None else "No agent has this id"
            raise NotFound(sentence, id=agent_id, fix="coditect agent list") from error
