"""The access to an API with keys: a request carries a bearer token, which is an API key or a token of an issuer.

Bearer tokens of an OpenID Connect issuer, verified by PyJWT with the issuer's published keys.

The keys are fetched in a thread, at most one at a time. They are fetched again after five minutes, and when a token
names an unknown key, at most every 30 s. If the issuer does not answer, the known keys stay valid, and the next fetch
comes after five seconds at the earliest: anybody may send a token with an unknown key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

import jwt
from starlette.requests import HTTPConnection

from coditect.api.access import LOCAL, Caller, Role
from coditect.api.problems import RequestRefused
from coditect.errors import Retryable, SetupError


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


log = logging.getLogger(__name__)

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""The signatures that are accepted: with an issuer's private key, and never with a shared secret."""
LEEWAY_SECONDS = 30
FETCH_SECONDS = 5.0
"""How long a fetch of the keys may take."""
KEEP_SECONDS = 300.0
"""The age at which keys are fetched again."""
UNKNOWN_SECONDS = 30.0
"""The shortest pause between a fetch that succeeded and the next one."""
AWAY_SECONDS = 5.0
"""The shortest pause between a fetch that failed and the next one."""
LARGEST_DOCUMENT_BYTES = 1_000_000
PIECE_BYTES = 65_536
DISCOVERY = "/.well-known/openid-configuration"


class OidcTokens:
    """The check of an issuer's tokens; a caller whose token names none of the roles is refused."""

    def __init__(
        self, issuer: str, audience: str, roles_claim: str = "roles", *, now: Callable[[], float] = time.monotonic
    ) -> None:
        """Take the issuer, the audience, the claim with a caller's roles (`a.b`: its field b), and a clock in seconds.

        Raises:
            SetupError: when the issuer is reached without TLS, and is not on this machine.
        """
        if not _is_reached_safely(issuer, issuer):
            fix = "CODITECT_API_OIDC_ISSUER=https://..."
            raise SetupError("An issuer is reached by https", issuer=urlsplit(issuer).hostname, fix=fix)
        self._issuer, self._audience, self._roles_claim = issuer, audience, roles_claim
        self._now = now
        self._keys: Mapping[str, jwt.PyJWK] = {}
        """The issuer's keys by their ids, as they were fetched last."""
        self._fetched = self._again = float("-inf")
        """When keys were fetched last, and when they may be fetched again."""
        self._away = False
        """Whether the last fetch failed."""
        self._fetching = asyncio.Lock()

    async def caller_of(self, token: str) -> Caller | None:
        """Return the caller that a token names; None if it is not the issuer's, not valid now, or names no known role.

        Raises:
            Retryable: when the token names an unknown key, and the issuer's keys cannot be fetched.
        """
        if token.count(".") != 2:
            return None
        try:
            key = await self._key(_kid(token))
            claims = None if key is None else self._claims(token, key)
        except (jwt.PyJWTError, ValueError):
            return None
        role = None if claims is None else _role(claims, self._roles_claim)
        if claims is None or role is None or claims["sub"] in ("", LOCAL.name):  # `local` has keys and tasks of its own
            return None
        return Caller(str(claims["sub"]), role)

    async def _key(self, kid: str) -> jwt.PyJWK | None:
        """Return the issuer's key of an id, fetching the keys if need be; None if the issuer has no such key."""
        if not kid and self._keys:
            return None
        is_old = self._now() >= self._fetched + KEEP_SECONDS
        if kid not in self._keys or (is_old and not self._fetching.locked()):  # one caller waits for it
            await self._refresh(kid)
        if kid not in self._keys and self._away:
            raise Retryable("The keys of the issuer cannot be fetched", issuer=self._issuer)
        return self._keys.get(kid)

    async def _refresh(self, kid: str) -> None:
        """Fetch the issuer's keys, unless that was tried a moment ago; if it fails, the known keys stay."""
        before = self._fetched
        async with self._fetching:
            if self._now() < self._again or (self._fetched > before and kid in self._keys):
                return
            try:
                async with asyncio.timeout(FETCH_SECONDS):
                    self._keys = await asyncio.to_thread(self._fetched_keys)
            except _UNREADABLE as error:
                self._away, self._again = True, self._now() + AWAY_SECONDS
                log.warning("The keys of the issuer cannot be fetched", extra={"reason": repr(error)[:300]})
            else:
                self._away, self._fetched = False, self._now()
                self._again = self._fetched + UNKNOWN_SECONDS

    def _fetched_keys(self) -> dict[str, jwt.PyJWK]:
        """Return the keys that the issuer publishes now; blocks."""
        place = self._issuer.rstrip("/") + DISCOVERY
        keys_at = str(_document(place)["jwks_uri"])
        _check_next(keys_at, place)
        rows = _document(keys_at)["keys"]
        if not isinstance(rows, list) or not rows:
            raise ValueError("the issuer publishes no keys")
        keys: dict[str, jwt.PyJWK] = {}
        for row in filter(_verifies, rows):
            with suppress(jwt.PyJWTError):
                keys[row["kid"]] = jwt.PyJWK(row)
        return keys

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        return jwt.decode(
            token,
            key,
            algorithms=list(ALGORITHMS),
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )


def _kid(token: str) -> str:
    """Return the id of the key that a token names; empty if it names none."""
    try:
        return str(jwt.get_unverified_header(token).get("kid") or "")
    except jwt.PyJWTError:
        return ""


def _verifies(row: object) -> bool:
    """Tell whether a published key has an id and is for signatures; PyJWT stumbles over fields of other types."""
    if not isinstance(row, dict) or not row.get("kid"):
        return False
    texts = all(isinstance(row.get(name), str | None) for name in ("kid", "kty", "alg", "crv"))
    purposes = row.get("key_ops")
    for_signatures = purposes is None or (isinstance(purposes, list) and "verify" in purposes)
    return texts and for_signatures and row.get("use") in ("sig", None)


def _is_reached_safely(url: str, named_by: str) -> bool:
    """Tell whether a URL is reached by TLS, or is on this machine, as the document then must be that names it."""
    both = [(parts.scheme, parts.hostname) for parts in map(urlsplit, (url, named_by))]
    return both[0][0] == "https" or all(place in _LOCAL for place in both)


def _check_next(url: str, named_by: str) -> None:
    if not _is_reached_safely(url, named_by):
        raise ValueError(f"the issuer's documents are not all reached by https: {url[:100]}")


class _SafeRedirects(HTTPRedirectHandler):
    """Follows no redirect from TLS to a connection without it."""

    def redirect_request(  # noqa: PLR0917 - as in urllib
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """Return the next request."""
        _check_next(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


OPENER = build_opener(_SafeRedirects)


def _document(url: str) -> dict[str, Any]:
    ends_at, text = time.monotonic() + FETCH_SECONDS, bytearray()
    with OPENER.open(url, timeout=FETCH_SECONDS) as answer:
        while piece := answer.read1(PIECE_BYTES):
            text += piece
            if len(text) > LARGEST_DOCUMENT_BYTES or time.monotonic() > ends_at:
                raise ValueError("the issuer's document is too large, or too slow")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("the issuer's document is no object")
    return found


_UNREADABLE = (OSError, HTTPException, KeyError, ValueError, RecursionError, jwt.PyJWTError)
"""The errors of a fetch: the issuer does not answer, or not with its keys."""
_LOCAL = (("http", "127.0.0.1"), ("http", "localhost"), ("http", "::1"))


def _role(claims: dict[str, Any], claim: str) -> Role | None:
    """Return the most powerful role that a claim names; None without one."""
    found: Any = claims
    for part in claim.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    named = found if isinstance(found, list) else str(found or "").split()
    roles = [role for role in Role if role.value in named]
    return roles[-1] if roles else None
