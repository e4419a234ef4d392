"""`--wait`: how long a command waits, refused before anything is sent; and what is said when a person ends the wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from coditect.cli.output import say
from coditect.model.duration import seconds


def checked(wait: str | None) -> str | None:
    """The option's callback. Raises: InputError."""
    if wait is not None:
        seconds(wait)
    return wait


@contextmanager
def going_on(sentence: str) -> Iterator[None]:
    """Says what goes on, and how to see it, when Ctrl-C ends the block."""
    try:
        yield
    except asyncio.CancelledError:
        say(sentence)
        raise
