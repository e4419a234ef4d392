"""Where this process sends answers: to our own reply queues, and to those of others that are declared for it.

Whoever may publish a task names the queue that its result goes to, and the agent may write to more queues than its
publisher may. So a name outside of ours is answered only if it fits a pattern of `CODITECT_ANSWER_QUEUES`. Our own
reply queues take anything: a reply counts there by the unguessable correlation id of its request.
"""

from __future__ import annotations

import asyncio
import math
from fnmatch import fnmatchcase
from functools import lru_cache

from coditect.errors import CoditectError, InvalidTask, SetupError
from coditect.wire.routing import Address, reply_address

ANSWER_QUEUES = "answers*,*answers"
"""Names that speak for themselves."""
_MADE_UP = ("amq.gen-", "amq.rabbitmq.reply-to.")
"""Names that the broker makes up, and nobody can guess."""
REFUSED_SECONDS = 60.0
"""For so long no answer is tried where the broker's permissions refused one: each refusal closes our channel."""


class ReturnAddresses:
    """The addresses that this process may answer to, and whether the broker lets it."""

    def __init__(self, patterns: str = ANSWER_QUEUES) -> None:
        """Patterns with commas between them; `*` stands for any text."""
        self._patterns = tuple(one.strip() for one in patterns.split(","))
        self.find = lru_cache(maxsize=4096)(self._find)
        """Where the answer to this `reply_to` goes; None when none is wanted, or it may not be written to."""
        self._closed_until = -math.inf

    def _find(self, reply_to: str | None) -> Address | None:
        address = reply_address(reply_to)
        if address is None or address.exchange:
            return address
        name = address.routing_key
        declared = name.startswith(_MADE_UP) or any(fnmatchcase(name, one) for one in self._patterns)
        return address if declared else None

    def check(self, reply_to: str | None) -> None:
        """Raises: InvalidTask for a `reply_to` that may not be written to."""
        if reply_to and self.find(reply_to) is None:
            raise InvalidTask(
                "The reply_to is no queue that results may be written to",
                reply_to=reply_to[:255],
                fix="name it answers.SOMETHING, or add it to CODITECT_ANSWER_QUEUES of agents and dispatchers",
            )

    def reachable(self, address: Address) -> bool:
        """Whether the broker lets us answer there, as far as it is known."""
        return bool(address.exchange) or asyncio.get_running_loop().time() >= self._closed_until

    def refused(self, address: Address, error: CoditectError) -> bool:
        """Whether that is the receiver's trouble alone: the broker lets us publish to nobody's queue but ours."""
        if address.exchange or not isinstance(error, SetupError):
            return False
        self._closed_until = asyncio.get_running_loop().time() + REFUSED_SECONDS
        return True
