"""What the requests with an Idempotency-Key asked for, so that a key that comes with another request is refused."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict

from pydantic import BaseModel

from coditect.errors import InputError

MOST_KEYS = 10_000


class RequestKeys:
    """The idempotency keys that came last to this API process, each with a hash of the request that it came with.

    The control plane has the keys themselves, and gives what the first request made: with or without this check no
    key makes two things.
    """

    def __init__(self, *, most: int = MOST_KEYS) -> None:
        self._most = most
        self._asked: OrderedDict[str, bytes] = OrderedDict()

    def check(self, key: str | None, request: BaseModel) -> None:
        """Check that a key is new here, or came with the same request before.

        Raises:
            InputError: when another request had it.
        """
        if key is not None and self._asked.get(key, _digest(request)) != _digest(request):
            fix = "send the first request again to get what it made, or choose another key, such as a new UUID"
            raise InputError("This Idempotency-Key came with another request before", fix=fix)

    def keep(self, key: str | None, request: BaseModel) -> None:
        """Keep a key with the hash of its carried out request, and forget the oldest key if there are too many."""
        if key is None:
            return
        self._asked[key] = _digest(request)
        self._asked.move_to_end(key)
        if len(self._asked) > self._most:
            self._asked.popitem(last=False)


def _digest(request: BaseModel) -> bytes:
    """Return the hash of a request, which does not depend on the order of its fields."""
    written = json.dumps([type(request).__name__, request.model_dump()], sort_keys=True, default=str)
    return hashlib.sha256(written.encode()).digest()
