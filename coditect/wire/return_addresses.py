"""The check of reply addresses: which queues the process may send answers to.

The publisher of a task names the queue for the result, and the agent may write to more queues than the publisher may.
So a name outside of Coditect's own reply queues is answered only if it fits a pattern of `CODITECT_ANSWER_QUEUES`.
Coditect's own reply queues take anything: a reply counts there by the unguessable correlation id of its request.
"""

from __future__ import annotations

import asyncio
import math
from fnmatch import fnmatchcase
from functools import lru_cache

from coditect.errors import CoditectError, InvalidTask, SetupError
from coditect.wire.routing import Address, reply_address

ANSWER_QUEUES = "answers*,*answers"
"""The default patterns: queue names that show their purpose."""
_MADE_UP = ("amq.gen-", "amq.rabbitmq.reply-to.")
"""Prefixes of the names that the broker generates, which cannot be guessed."""
REFUSED_SECONDS = 60.0
"""How long no answer is tried after the broker's permissions refused one: each refusal closes the channel."""


class ReturnAddresses:
    """The reply addresses that the process may answer to, and whether the broker's permissions allow it."""

    def __init__(self, patterns: str = ANSWER_QUEUES) -> None:
        """Take the permitted queue names as comma-separated patterns; `*` stands for any text."""
        self._patterns = tuple(one.strip() for one in patterns.split(","))
        self.find = lru_cache(maxsize=4096)(self._find)
        """Return the address of a `reply_to`; None when no answer is wanted, or the queue may not be written to."""
        self.check = lru_cache(maxsize=4096)(self._check)
        """Check that answers may be sent to a `reply_to`; raises InvalidTask when the queue may not be written to."""
        self._closed_until = -math.inf

    def _find(self, reply_to: str | None) -> Address | None:
        address = reply_address(reply_to)
        if address is None or address.exchange:
            return address
        name = address.routing_key
        declared = name.startswith(_MADE_UP) or any(fnmatchcase(name, one) for one in self._patterns)
        return address if declared else None

    def _check(self, reply_to: str | None) -> None:
        if reply_to and self.find(reply_to) is None:
            raise InvalidTask(
                "The reply_to is no queue that results may be written to",
                reply_to=reply_to[:255],
                fix="name it answers.SOMETHING, or add it to CODITECT_ANSWER_QUEUES of agents and dispatchers",
            )

    def reachable(self, address: Address) -> bool:
        """Return whether the broker's permissions allow an answer to the address, as far as is known."""
        return bool(address.exchange) or asyncio.get_running_loop().time() >= self._closed_until

    def refused(self, address: Address, error: CoditectError) -> bool:
        """Return whether an answer's error concerns the receiver alone: a lack of permission for a foreign queue.

        If so, `reachable` is False for all foreign queues for `REFUSED_SECONDS`.
        """
        if address.exchange or not isinstance(error, SetupError):
            return False
        self._closed_until = asyncio.get_running_loop().time() + REFUSED_SECONDS
        return True
