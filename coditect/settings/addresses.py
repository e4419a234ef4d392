"""Text for logs and terminals: server addresses without their passwords, and control characters as escapes."""

from __future__ import annotations

import re
from dataclasses import fields
from urllib.parse import unquote, urlsplit

SHORTEST_SECRET = 6
"""The length in characters from which a secret is looked for in any text; a shorter one would hide plain words."""
_WRITTEN_PASSWORD = re.compile(r"\w://[^\s/:@]*:([^\s/@]+)@")
_PASSWORD = re.compile(r"(\w://[^\s/:@\"']*):[^\s/@\"']+@")


def without_passwords(text: str) -> str:
    """Replace the password in every URL of a text with `***`: `amqp://user:***@host:5672/`."""
    return _PASSWORD.sub(r"\1:***@", text) if "://" in text else text


def printable(text: str, *, keep: str = "") -> str:
    r"""Return a text with its control characters as escapes such as `\x1b`, but for those in `keep`.

    Text of agents can then neither move a terminal's cursor nor look like another line of a log.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


def secrets_in(settings: object) -> frozenset[str]:
    """Return the passwords of 6 characters or more in settings: in URLs, and in fields with `password` in the name.

    Each is given both as written and percent-decoded.
    """
    found: set[str] = set()
    for field in fields(settings):  # type: ignore[arg-type]  # a dataclass, of which typing has no name
        text = getattr(settings, field.name)
        if isinstance(text, str) and "://" in text:
            found |= {*_WRITTEN_PASSWORD.findall(text)}
        elif isinstance(text, str) and "password" in field.name:
            found.add(text)
    found |= {unquote(secret) for secret in found}
    return frozenset(secret for secret in found if len(secret) >= SHORTEST_SECRET)


def vhost_of(amqp_url: str) -> str:
    """Return the vhost that the URL of a broker names, or the first one of several URLs with commas; `/` by default."""
    return unquote(urlsplit(amqp_url.partition(",")[0]).path.removeprefix("/")) or "/"
