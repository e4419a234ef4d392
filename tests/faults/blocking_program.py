"""An agent whose handlers block its event loop, each in a way of its own."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

from coditect import Agent, Retry

agent = Agent("blocking", slots=4)
EFFECTS = Path(os.environ["EFFECT_LOG"])


def sleeps() -> None:
    time.sleep(600)


def holds_the_interpreter() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def spins() -> None:
    while True:
        pass


def stands_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


BLOCKS = {one.__name__: one for one in (sleeps, spins, holds_the_interpreter, stands_stopped)}


@agent.capability("block.loop", timeout="2s", retry=Retry(max_attempts=2, first="100ms"))
async def block(how: str) -> None:
    with EFFECTS.open("a") as effects:
        effects.write(f"block {os.getpid()} {os.getppid()}\n")
    BLOCKS[how]()


@agent.capability("work.do")
async def work(number: int) -> int:
    return number
