"""The key that ends a live view, on a terminal of its own."""

from __future__ import annotations

import asyncio
import os
import pty
import termios
from collections.abc import Iterator

import pytest

from coditect.aio.loop import run_loop
from coditect.cli.terminal.options import quit_key

pytestmark = pytest.mark.usefixtures("_ctrl_c")


@pytest.fixture
def keyboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Both ends of a terminal that is stdin: where keys are pressed, and where they are read."""
    pressed, read = pty.openpty()
    with os.fdopen(read, closefd=False) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        yield pressed, read
    os.close(pressed)
    os.close(read)


async def _waiting(pressed: int, keys: bytes) -> str:
    with quit_key():
        os.write(pressed, keys)
        async with asyncio.timeout(0.5 if keys == b"x" else 10):
            await asyncio.Event().wait()
    return "never"


def test_q_is_ctrl_c_and_the_terminal_is_as_it_was(keyboard: tuple[int, int]) -> None:
    before = termios.tcgetattr(keyboard[1])

    with pytest.raises(KeyboardInterrupt):
        run_loop(_waiting(keyboard[0], b"q"))

    assert termios.tcgetattr(keyboard[1]) == before


def test_another_key_changes_nothing(keyboard: tuple[int, int]) -> None:
    with pytest.raises(TimeoutError):
        run_loop(_waiting(keyboard[0], b"x"))
