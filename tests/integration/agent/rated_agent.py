"""The agent of the test of rates: each execution leaves the time at which it began in the effect log."""

from __future__ import annotations

import os
import time
from pathlib import Path

from coditect import Agent, Rate

RATE = Rate("50/s", burst=10)
rated = Agent("rated", slots=8)


@rated.capability("page.fetch", rate=RATE)
async def fetch(number: int) -> int:
    line = f"{time.time():.6f} {number} {os.getpid()}\n".encode()
    descriptor = os.open(Path(os.environ["EFFECT_LOG"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)  # one write of a short line to an O_APPEND file is atomic
    os.close(descriptor)
    return number
