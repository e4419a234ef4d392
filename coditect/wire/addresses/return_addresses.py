"""The check of reply addresses: to which queues a process may send results.

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
"""The default patterns of queue names that results may go to: names that show this purpose."""
_MADE_UP = ("amq.gen-", "amq.rabbitmq.reply-to.")
"""Prefixes of queue names that the broker generates and that strangers cannot guess."""
REFUSED_SECONDS = 60.0
"""How long a process sends no result to foreign queues after the broker refused one, which closed the channel."""


class ReturnAddresses:
    """The reply queues that a process may send results to, by name patterns and by the broker's permissions."""

    def __init__(self, patterns: str = ANSWER_QUEUES) -> None:
        """Permit results to Coditect's and broker-named reply queues, and to names that fit comma-separated patterns.

        In a pattern, `*` stands for any text.
        """
        self._patterns = tuple(one.strip() for one in patterns.split(","))
        self.find = lru_cache(maxsize=4096)(self._find)
        """The cached lookup of a `reply_to`'s address; None when no result is wanted, or the queue is not permitted."""
        self.check = lru_cache(maxsize=4096)(self._check)
        """The cached check that results may go to a `reply_to`; raises InvalidTask for a forbidden queue."""
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
        """Tell whether results may go to an address; for 60 s after a refusal by the broker, only Coditect's own may.

        Coditect's own reply queues stay reachable; all other queues are unreachable for these `REFUSED_SECONDS`.
        """
        return bool(address.exchange) or asyncio.get_running_loop().time() >= self._closed_until

    def refused(self, address: Address, error: CoditectError) -> bool:
        """Tell whether a publish failed for lack of permission to write to a reply queue; remember such a failure.

        If so, `reachable` is False for all foreign queues for `REFUSED_SECONDS`.
        """
        if address.exchange or not isinstance(error, SetupError):
            return False
        self._closed_until = asyncio.get_running_loop().time() + REFUSED_SECONDS
        return True
