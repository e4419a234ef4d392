"""Text about server addresses with the passwords removed, for logs and terminals."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

_PASSWORD = re.compile(r"(\w://[^\s/:@\"']*):[^\s/@\"']+@")


def without_passwords(text: str) -> str:
    """Replace the password in every URL of a text with `***`: `amqp://user:***@host:5672/`."""
    return _PASSWORD.sub(r"\1:***@", text) if "://" in text else text


def vhost_of(amqp_url: str) -> str:
    """Return the vhost that the URL of a broker names, or the first one of several URLs with commas; `/` by default."""
    return unquote(urlsplit(amqp_url.partition(",")[0]).path.removeprefix("/")) or "/"
