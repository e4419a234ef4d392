"""The types of what several HTTP routes take: page limits, waiting times, idempotency keys, the caller, bodies."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from fastapi import Depends, Header, Path, Query
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from starlette.requests import HTTPConnection

from coditect.api.access.guard import ENCODED_SLASH
from coditect.api.access.roles import Caller
from coditect.api.problems import DURATION
from coditect.client.options import RequestKey
from coditect.model.duration import seconds

MOST_ROWS = 1_000

Span = Annotated[str, Field(pattern=DURATION, examples=["30s", "5m", "2h"])]
"""A duration as text."""
LONGEST_WAIT_SECONDS = 300.0


def _bounded(wait: str | None) -> str | None:
    """Return the waiting time of a request (None without one) unchanged; raise ValueError for over five minutes.

    Neither proxies nor people have patience for more.
    """
    if wait is not None and seconds(wait) > LONGEST_WAIT_SECONDS:
        raise ValueError("a wait is at most 5m; ask again after it")
    return wait


Wait = Annotated[
    Span | None, AfterValidator(_bounded), Query(description="How long to wait for the end before answering; up to 5m.")
]
FreeName = Annotated[
    str, BeforeValidator(lambda name: name.replace(ENCODED_SLASH, "/")), Path(min_length=1, max_length=200)
]
"""A name in a path that may be any text; its slashes are sent as %2F."""
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="The most rows of the answer.")]
Cursor = Annotated[
    str | None, Query(max_length=2_000, description="The `next` of the page before; without it, the first page.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Makes a repeated request harmless: the same caller's same key gives what the first one made.",
    ),
]


class ApiRequest(BaseModel):
    """A body of a request; a field that it does not know is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChangeReason(ApiRequest):
    """The body of a request whose change needs only a reason."""

    reason: str = Field(default="by the HTTP API", max_length=1_000)


async def _who(connection: HTTPConnection) -> Caller:
    caller: Caller = connection.state.caller
    return caller


Who = Annotated[Caller, Depends(_who)]
"""The type of a route's parameter that takes the caller."""


def own_key(caller: Caller, key: str | None) -> str | None:
    """Return an idempotency key with the caller's name before it, as the control plane keeps it; None without a key.

    A slash in the caller's name is written otherwise, so that `a/b` with the key `c` is not `a` with the key `b/c`.
    """
    name = caller.name.replace("%", "%25").replace("/", "%2F")
    return None if key is None else f"api/{name}/{key}"


def request_key(caller: Caller, key: str | None, request: BaseModel, *, of: str = "") -> RequestKey | None:
    """Return a caller's idempotency key with a hash that tells its request from others; None without a key.

    The hash depends on the kind of the request, on what it is about, and on its fields, not on their order.
    """
    kept = own_key(caller, key)
    if kept is None:
        return None
    fields = request.model_dump(mode="json", exclude_defaults=True)
    written = json.dumps([type(request).__name__, of, fields], sort_keys=True)
    return RequestKey(kept, hashlib.sha256(written.encode()).hexdigest())
