"""A broker in memory with one capability, and dead letters as an agent writes them."""

from __future__ import annotations

import json
from typing import Any

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.model.message import Message
from coditect.operations.dead_letters import DeadLetters
from coditect.wire import routing, tasks
from coditect.wire.headers import HEADER_PREFIX
from tests.unit.agent.scene import StillClock

CAPABILITY = "code.review"
DEAD = "dead.code.review"
TASKS = "tasks.code.review.p1"
NOW_MS = 1_800_000_000_000


def letter(letter_id: str | None, *, reason: str = "handler_error", **more: Any) -> Message:
    """A dead letter made by an agent; `more` replaces headers by their short name or message fields."""
    error = {"type": "ValueError", "message": "no such file", "reason": reason, "traceback": "Traceback ..."}
    headers: dict[str, Any] = {
        tasks.REASON: reason,
        tasks.AGENT: "reviewer-00000001",
        tasks.ATTEMPT: 3,
        tasks.ERROR: json.dumps(error),
        tasks.ERRORS: json.dumps([{"agent": "reviewer-00000001", "attempt": 1, "message": "first"}]),
        tasks.DEAD_AT: NOW_MS - 60_000,
    }
    fields = {name: more.pop(name) for name in ("reply_to", "correlation_id", "body") if name in more}
    headers |= {HEADER_PREFIX + name.replace("_", "-"): value for name, value in more.pop("own", {}).items()}
    headers |= more.pop("headers", {})
    return Message(
        **{"body": b'{"path": "src"}', **fields}, headers=headers, message_id=letter_id, type=tasks.TASK_TYPE
    )


class Scene:
    """The broker of one test, and what lies in its queues."""

    def __init__(self, server: MemoryServer, broker: MemoryBroker) -> None:
        self.server = server
        self.broker = broker
        self.letters = DeadLetters(broker, StillClock(_now_ms=NOW_MS))

    async def bury(self, *messages: Message, key: str = "code.review.p1") -> None:
        """Puts dead letters where an agent puts them."""
        for message in messages:
            await self.broker.publish(message, exchange=routing.DEAD, routing_key=key)

    def count(self, queue: str) -> int:
        """Ready messages."""
        return self.server.queue(queue).stats.messages

    async def taken(self, queue: str) -> list[Message]:
        """Everything in the queue, taken out."""
        messages = []
        while (delivery := await self.broker.get(queue)) is not None:
            messages.append(delivery.message)
            delivery.ack()
        return messages
