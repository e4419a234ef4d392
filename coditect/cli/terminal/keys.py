"""The keys of a live view on a terminal: `q` ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

QUIT = b"q"


@contextmanager
def quit_key() -> Iterator[None]:
    """Make the key `q` work as Ctrl-C does inside the block; without a terminal do nothing."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # POSIX has it, and a pipe needs none
    import tty

    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def pressed() -> None:
        keys = os.read(terminal, 64)
        if not keys or QUIT in keys.lower():  # no key at all: the terminal is gone
            signal.raise_signal(signal.SIGINT)

    tty.setcbreak(terminal)
    loop.add_reader(terminal, pressed)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
