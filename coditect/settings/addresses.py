"""Addresses of servers as they may be shown: without the password that stands in them."""

from __future__ import annotations

import re

_PASSWORD = re.compile(r"(\w://[^\s/:@\"']*):[^\s/@\"']+@")


def without_passwords(text: str) -> str:
    """The text with `***` for the password of every address in it, such as `amqp://user:***@host:5672/`."""
    return _PASSWORD.sub(r"\1:***@", text) if "://" in text else text
