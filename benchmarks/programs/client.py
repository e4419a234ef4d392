"""`python -m benchmarks.programs.client SIDE MODE WARM_UP COUNT WATCHED [PROFILE] ANSWER`: the timed client.

SIDE is `coditect` or `aio-pika`; MODE is `burst` (COUNT tasks at once, after a burst of WARM_UP) or `single`
(COUNT round trips, one at a time). WATCHED is `name=pid,...`: processes whose processor time is measured
too. The figures go to the file ANSWER as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil

from benchmarks import loop
from benchmarks.profiling import profiled
from benchmarks.programs.aio_pika_driver import aio_pika_driver
from benchmarks.programs.coditect_driver import coditect_driver
from benchmarks.programs.driver import Driver

CLIENT = "client"


def open_driver(side: str) -> AbstractAsyncContextManager[Driver]:
    """The driver of this side."""
    if side == "coditect":
        return coditect_driver()
    return aio_pika_driver(os.environ["CODITECT_AMQP_URL"])


class CpuMeter:
    """Processor time, user and system, of this process and of the watched ones since it was made."""

    def __init__(self, watched: str) -> None:
        pairs = (one.split("=") for one in watched.split(",") if one)
        self._processes = {name: psutil.Process(int(pid)) for name, pid in pairs}
        self._processes[CLIENT] = psutil.Process()
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: one.user + one.system for name, one in times.items()}

    def seconds(self) -> dict[str, float]:
        """By process name; the kernel counts in steps of 10 ms."""
        return {name: after - self._before[name] for name, after in self._read().items()}


async def burst(driver: Driver, warm_up: int, count: int, watched: str) -> dict[str, object]:
    """Tasks at once: wall time from the first publish to the last checked result."""
    await driver.burst(warm_up)
    gc.collect()
    gc.freeze()
    meter = CpuMeter(watched)
    began = time.perf_counter()
    await driver.burst(count)
    seconds = time.perf_counter() - began
    return {"tasks": count, "seconds": seconds, "cpu_seconds": meter.seconds()}


async def single(driver: Driver, warm_up: int, count: int) -> dict[str, object]:
    """One round trip after the other: each one's milliseconds."""
    for number in range(warm_up):
        await driver.single(number)
    gc.collect()
    gc.freeze()
    milliseconds = []
    for number in range(count):
        began = time.perf_counter()
        await driver.single(number)
        milliseconds.append((time.perf_counter() - began) * 1000)
    return {"milliseconds": milliseconds}


async def measure(side: str, mode: str, warm_up: int, count: int, watched: str) -> dict[str, object]:
    """Connects, measures, and disconnects."""
    async with open_driver(side) as driver:
        if mode == "burst":
            return await burst(driver, warm_up, count, watched)
        return await single(driver, warm_up, count)


def main(arguments: list[str]) -> None:
    """Runs one measurement; see the module's first lines."""
    side, mode, warm_up, count, watched, *profile, answer = arguments
    with profiled(profile[0] if profile else None):
        figures = loop.run(measure(side, mode, int(warm_up), int(count), watched))
    Path(answer).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
