"""Malformed and forged messages, which no client of Coditect sends but any program may publish; and repeated requests.

Each message costs only its sender: it is answered, refused or given up after few attempts, and its statements about
others are not believed. A message that is left in the queues when a run has ended is a broken promise.

When a connection breaks or a dispatcher dies, a request to the control plane may arrive twice, or long after it was
sent.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from chaos.history import Note, Type
from chaos.load.work import CAPABILITY
from coditect.broker.port import Broker, Delivery
from coditect.broker.topology import Binding, Queue, QueueType, Topology
from coditect.errors import CoditectError
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.wire import routing, tasks
from coditect.wire.control import ANY, VERB, Verb

PREFIX = "stranger-"
SENT_SECONDS = 5.0
DEEP = 400
LONG_BYTES = 30_000
HANDS_FULL = 12
"""The number of messages that one call of `Strangers.send` or `repeat` publishes."""
MOST_REQUESTS = 500
"""The number of the latest requests that may be repeated."""
_TAP = Topology(
    (),
    (Queue("chaos.requests", QueueType.CLASSIC, expires_ms=60_000, max_length=MOST_REQUESTS, drops_oldest=True),),
    (Binding(routing.CONTROL, "chaos.requests", ANY),),
)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message of a foreign program: body, headers, reply address and capability."""

    body: bytes = b'{"milliseconds": 1}'
    headers: Mapping[str, Any] = field(default_factory=dict)
    reply_to: str | None = None
    capability: str = CAPABILITY


def _garbage(_: Random) -> Letter:
    return Letter(body=b'\xff{"milliseconds": ')


def _deep_errors(_: Random) -> Letter:
    return Letter(body=b'{"milliseconds": 1, "fails": 99}', headers={tasks.ERRORS: "[" * DEEP + "]" * DEEP})


def _many_errors(_: Random) -> Letter:
    return Letter(headers={tasks.ERRORS: json.dumps([{}] * (LONG_BYTES // 4))})


def _refused_reply(random: Random) -> Letter:
    queue = routing.task_queue(CAPABILITY, Priority.P1)
    return Letter(reply_to=random.choice((queue, "control", "amq.rabbitmq.trace", "reply.nobody", "no such queue")))


def _forged_owner(random: Random) -> Letter:
    workflow = f"00000000-0000-7000-8000-{random.getrandbits(48):012x}"
    owner = {
        tasks.WORKFLOW_HEADER: workflow,
        tasks.NODE_HEADER: "n",
        tasks.ORIGIN: "0",
        tasks.FENCE: 1,
        tasks.PUBLICATION: 1,
    }
    return Letter(headers=owner)


def _forged_shard(random: Random) -> Letter:
    letter = _forged_owner(random)
    return Letter(headers={**letter.headers, tasks.ORIGIN: f"nowhere-{random.randrange(3)}"})


def _odd_numbers(random: Random) -> Letter:
    odd = random.choice((-1, 0, 2**63 - 1, "many", True))
    return Letter(headers={tasks.ATTEMPT: odd, tasks.MAX_ATTEMPTS: odd, tasks.DEADLINE: odd})


def _unknown(random: Random) -> Letter:
    return Letter(capability=random.choice(("no.such.capability", "chaos", "*", "a" * 200)))


DRAWN: Mapping[str, Callable[[Random], Letter]] = {
    "garbage": _garbage,
    "deep errors": _deep_errors,
    "many errors": _many_errors,
    "refused reply": _refused_reply,
    "forged owner": _forged_owner,
    "forged shard": _forged_shard,
    "odd numbers": _odd_numbers,
    "unknown capability": _unknown,
}
"""The kinds of foreign messages by name, each with the function that makes a random one."""


class Strangers:
    """The sender of malformed and forged messages, and of requests again, over a broker connection of its own."""

    def __init__(self, broker: Broker, note: Note, random: Random) -> None:
        self._broker = broker
        self._note = note
        self._random = random
        self._sent = 0
        self._requests: deque[tuple[Message, float]] = deque(maxlen=MOST_REQUESTS)
        """Copies of requests that others sent, each with the event loop's time at which it expires."""

    async def send(self) -> None:
        """Publish messages of random kinds, and record each; a failed publish is not repeated."""
        for _ in range(HANDS_FULL):
            kind = self._random.choice(tuple(DRAWN))
            letter = DRAWN[kind](self._random)
            self._sent += 1
            name = f"{PREFIX}{self._sent}-{self._random.getrandbits(32):x}"
            message = Message(letter.body, headers=dict(letter.headers), message_id=name, reply_to=letter.reply_to)
            self._note(Type.INVOKE, "stranger", name, what=kind)
            try:
                await self._broker.publish(
                    message,
                    exchange=routing.TASKS,
                    routing_key=f"{letter.capability}.{self._random.choice(tuple(Priority)).value}",
                    timeout_seconds=SENT_SECONDS,
                )
            except CoditectError:
                self._note(Type.INFO, "stranger", name)
            else:
                self._note(Type.OK, "stranger", name)

    async def listen(self) -> None:
        """Get a copy of every request to the control plane from now on, for `repeat`."""
        await self._broker.declare(_TAP)
        await self._broker.consume(_TAP.queues[0].name, self._arrived, prefetch=MOST_REQUESTS, group="requests")

    def _arrived(self, delivery: Delivery) -> None:
        message = delivery.message
        if message.expiration_ms is not None and message.headers.get(VERB) != Verb.CLAIM:
            end = asyncio.get_running_loop().time() + message.expiration_ms / 1000
            self._requests.append((message, end))
        delivery.ack()

    async def repeat(self) -> None:
        """Publish copies of requests that have not expired; each expires when the request itself does."""
        now = asyncio.get_running_loop().time()
        fresh = [one for one in self._requests if one[1] > now]
        for message, end in self._random.sample(fresh, min(HANDS_FULL, len(fresh))):
            left_ms = max(1, round(1000 * (end - now)))
            with suppress(CoditectError):
                await self._broker.publish(
                    replace(message, expiration_ms=left_ms),
                    exchange=routing.CONTROL,
                    routing_key=ANY,
                    timeout_seconds=SENT_SECONDS,
                )
        with suppress(CoditectError):  # a fault may have deleted the exchange with its bindings
            await self._broker.declare(_TAP)
