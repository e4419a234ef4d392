"""The option `--wait`, checked before the command sends anything, and the text printed on Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from coditect.cli.terminal.output import say
from coditect.model.duration import seconds


def checked(wait: str | None) -> str | None:
    """Return an option such as `--wait`, if given, after a check that it is a duration; a typer callback.

    Raises:
        InputError: when the text is no duration.
    """
    if wait is not None:
        seconds(wait)
    return wait


@contextmanager
def going_on(sentence: str) -> Iterator[None]:
    """Print a sentence when Ctrl-C ends the block: which work goes on, and how to see it."""
    try:
        yield
    except asyncio.CancelledError:
        say(sentence)
        raise
