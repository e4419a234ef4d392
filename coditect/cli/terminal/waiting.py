"""The option `--wait`: checked before anything is sent; and the text for a person who ends the wait."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from coditect.cli.terminal.output import say
from coditect.model.duration import seconds


def checked(wait: str | None) -> str | None:
    """Check the option's duration and return the option unchanged: the callback of typer.

    Raises:
        InputError: when the text is no duration.
    """
    if wait is not None:
        seconds(wait)
    return wait


@contextmanager
def going_on(sentence: str) -> Iterator[None]:
    """Print the sentence when Ctrl-C ends the block: what goes on, and how to see it."""
    try:
        yield
    except asyncio.CancelledError:
        say(sentence)
        raise
