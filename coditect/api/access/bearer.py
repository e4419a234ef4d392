"""The access to an API with keys: a request carries a bearer token, which is an API key or a token of an issuer."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

from starlette.requests import HTTPConnection

from coditect.api.access.roles import Caller
from coditect.api.problems import RequestRefused


class TokenCheck(Protocol):
    """The check of one kind of bearer token, such as API keys."""

    async def caller_of(self, token: str) -> Caller | None:
        """Return the caller to whom a token belongs; None for a token of another kind, or a wrong one."""


class BearerAccess:
    """The access by the header `Authorization: Bearer`: the first check that knows the token names the caller."""

    def __init__(self, checks: Sequence[TokenCheck]) -> None:
        self._checks = checks

    async def caller(self, connection: HTTPConnection) -> Caller:
        """Return the caller to whom a request's bearer token belongs; refuse a request without a valid one.

        Raises:
            RequestRefused: 401, when the request has no token, or a wrong one.
        """
        scheme, _, token = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _refused("This API wants a key")
        for check in self._checks:
            if (caller := await check.caller_of(token.strip())) is not None:
                return caller
        raise _refused("This is no valid key or token of this API")


def _refused(sentence: str) -> RequestRefused:
    fix = "send the header Authorization: Bearer KEY; `coditect api key create` makes a key"
    return RequestRefused(HTTPStatus.UNAUTHORIZED, sentence, fix=fix, headers={"www-authenticate": "Bearer"})
