"""Dead-lettering as RabbitMQ does it: the new routing key and the `x-death` history of a message.

The shape is RabbitMQ 3.10's: one entry per queue and reason, the latest first, counted; the first death again in three
headers of its own. `expiration` is removed; `CC` too when the queue has a key of its own for dead letters.
https://www.rabbitmq.com/docs/dlx
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from coditect.broker.topology import Queue
from coditect.model.message import HeaderTable, Message

DEATHS = "x-death"


class Reason(StrEnum):
    """The reason for which a queue dead-lettered a message."""

    EXPIRED = "expired"
    REJECTED = "rejected"
    DELIVERY_LIMIT = "delivery_limit"
    MAXLEN = "maxlen"


def routing_keys(message: Message, routing_key: str) -> tuple[str, ...]:
    """Return all keys by which a message is routed: its routing key and the keys in its `CC` header."""
    carbon = message.headers.get("CC")
    if not isinstance(carbon, list):
        return (routing_key,)
    return (routing_key, *(key for key in carbon if isinstance(key, str)))


def dead_letter(
    message: Message, *, exchange: str, routing_key: str, queue: Queue, reason: Reason, at_ms: int
) -> tuple[Message, str]:
    """Return a message without expiration, its death added to `x-death`, and its key for the dead-letter exchange."""
    headers = dict(message.headers)
    death = {
        "count": 1,
        "reason": reason.value,
        "queue": queue.name,
        "time": datetime.fromtimestamp(at_ms // 1000, UTC),
        "exchange": exchange,
        "routing-keys": list(routing_keys(message, routing_key)),
    }
    if message.expiration_ms is not None:
        death["original-expiration"] = str(message.expiration_ms)
    _record(headers, death)
    if queue.dead_letter_routing_key is not None:
        headers.pop("CC", None)
    key = queue.dead_letter_routing_key or routing_key
    return replace(message, headers=headers, expiration_ms=None), key


def _record(headers: dict[str, Any], death: dict[str, Any]) -> None:
    deaths = headers.get(DEATHS)
    if not isinstance(deaths, list):
        for part in ("reason", "queue", "exchange"):
            headers[f"x-first-death-{part}"] = death[part]
        headers[DEATHS] = [death]
        return
    others = []
    for earlier in deaths:
        if not _same(earlier, death):
            others.append(earlier)
        elif isinstance(earlier.get("count"), int):
            death = earlier | {"count": earlier["count"] + 1}
    headers[DEATHS] = [death, *others]


def _same(earlier: Any, death: dict[str, Any]) -> bool:
    return (
        isinstance(earlier, dict)
        and earlier.get("queue") == death["queue"]
        and earlier.get("reason") == death["reason"]
    )


def is_cycle(headers: HeaderTable, target: str, reason: Reason) -> bool:
    """Tell whether a dead letter would come to a queue a second time without a reject in between.

    RabbitMQ drops such a message silently, also when a publisher copied `x-death` into it (3.10).
    """
    deaths = headers.get(DEATHS)
    if reason is Reason.REJECTED or not isinstance(deaths, list):
        return False
    for death in deaths:
        if not isinstance(death, dict) or death.get("reason") == Reason.REJECTED:
            return False
        if death.get("queue") == target:
            return True
    return False
