"""Bearer tokens of an OpenID Connect issuer, verified by PyJWT with the issuer's published keys.

The keys are fetched in a thread, kept for five minutes, and asked for again when a token names an unknown one, at most
every 30 s. An issuer that is away is asked again after five seconds: anybody may send tokens, and each would hold a
thread until its time is over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import jwt

from coditect.api.access.roles import Caller, Role
from coditect.errors import Retryable, SetupError

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA")
"""The signatures that are accepted: with an issuer's private key, and never with a shared secret."""
LEEWAY_SECONDS = 30
FETCH_SECONDS = 5.0
AWAY_SECONDS = 5.0
DISCOVERY = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class OidcSettings:
    """The settings for tokens of an OpenID Connect issuer: the issuer, the audience, and the claim with the roles."""

    issuer: str
    audience: str
    roles_claim: str = "roles"
    """The claim that lists a caller's roles; `a.b` is the field b of the claim a."""


class OidcTokens:
    """The check of an issuer's tokens; a caller whose token names none of the roles is refused."""

    def __init__(self, settings: OidcSettings, *, now: Callable[[], float] = time.monotonic) -> None:
        """Take the settings of the issuer, and a clock in seconds.

        Raises:
            SetupError: when the issuer is reached without TLS, and is not on this machine.
        """
        address = urlsplit(settings.issuer)
        if address.scheme != "https" and (address.scheme, address.hostname) not in _LOCAL:
            fix = "CODITECT_API_OIDC_ISSUER=https://..."
            raise SetupError("An issuer is reached by https", issuer=settings.issuer, fix=fix)
        self._settings = settings
        self._now = now
        self._jwks: jwt.PyJWKClient | None = None
        self._away_until = float("-inf")

    async def caller_of(self, token: str) -> Caller | None:
        """Return the caller that a token names; None if it is not the issuer's, not valid now, or names no known role.

        Raises:
            Retryable: when the issuer's keys cannot be fetched.
        """
        if token.count(".") != 2:
            return None
        if self._now() < self._away_until:
            raise self._away()
        try:
            claims = await asyncio.to_thread(self._claims, token)
        except (jwt.PyJWKClientConnectionError, KeyError, OSError) as error:
            self._away_until = self._now() + AWAY_SECONDS
            raise self._away() from error
        except (jwt.PyJWTError, ValueError):
            return None
        role = _role(claims, self._settings.roles_claim)
        return None if role is None else Caller(str(claims["sub"]), role)

    def _away(self) -> Retryable:
        return Retryable("The keys of the issuer cannot be fetched", issuer=self._settings.issuer)

    def _claims(self, token: str) -> dict[str, Any]:
        """Return the verified claims of a token; blocks while keys are fetched."""
        if self._jwks is None:
            self._jwks = jwt.PyJWKClient(self._jwks_address(), timeout=FETCH_SECONDS)
        key = self._jwks.get_signing_key_from_jwt(token)
        return jwt.decode(
            token,
            key,
            algorithms=list(ALGORITHMS),
            audience=self._settings.audience,
            issuer=self._settings.issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )

    def _jwks_address(self) -> str:
        place = self._settings.issuer.rstrip("/") + DISCOVERY
        with urlopen(place, timeout=FETCH_SECONDS) as answer:  # noqa: S310 - the scheme was checked
            return str(json.load(answer)["jwks_uri"])


_LOCAL = (("http", "127.0.0.1"), ("http", "localhost"), ("http", "::1"))


def _role(claims: dict[str, Any], claim: str) -> Role | None:
    """Return the most powerful role that a claim names; None without one."""
    found: Any = claims
    for part in claim.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    named = found if isinstance(found, list) else str(found or "").split()
    roles = [role for role in Role if role.value in named]
    return roles[-1] if roles else None
