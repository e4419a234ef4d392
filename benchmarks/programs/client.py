"""`python -m benchmarks.programs.client ORDER ANSWER`: the timed client.

ORDER is an `Order` as JSON. The figures go to the file ANSWER, as JSON, too.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import psutil

from benchmarks.programs import tally
from benchmarks.programs.driver import Driver, Load
from benchmarks.programs.order import Mode, Order
from coditect.aio.launch import tell_ready
from coditect.aio.loop import run_loop

CLIENT = "client"
EXECUTED_SECONDS = 120.0


def open_driver(order: Order) -> AbstractAsyncContextManager[Driver]:
    """Return the driver of the order's side."""
    opened: AbstractAsyncContextManager[Driver] = importlib.import_module(order.driver).open_driver(
        Load(order.body_bytes, order.capabilities)
    )
    return opened


class CpuMeter:
    """A meter of the client's and watched processes' processor time, user and system, since it was made.

    The children of a watched process count as part of it.
    """

    def __init__(self, watched: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in watched.items()}
        self._processes[CLIENT] = psutil.Process()
        self._before = self._read()

    def _read(self) -> dict[str, float]:
        return {name: _cpu_seconds(process) for name, process in self._processes.items()}

    def seconds(self) -> dict[str, float]:
        """Return the seconds by process name; the kernel counts in steps of 10 ms."""
        return {name: after - self._before[name] for name, after in self._read().items()}


def _cpu_seconds(process: psutil.Process) -> float:
    times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    return sum(spent.user + spent.system for spent in times)


def _megabytes() -> float:
    return psutil.Process().memory_info().rss / 1e6


def _settle() -> None:
    """Exclude the garbage of start-up and warm-up from the measurement, and tell a watching process that it begins."""
    gc.collect()
    gc.freeze()
    tell_ready()


async def burst(driver: Driver, order: Order) -> dict[str, object]:
    """Measure tasks at once: the wall time from the first publish to the last checked result."""
    await driver.burst(order.warm_up)
    _settle()
    meter = CpuMeter(order.watched)
    began = time.perf_counter()
    await driver.burst(order.count)
    seconds = time.perf_counter() - began
    return {"tasks": order.count, "seconds": seconds, "cpu_seconds": meter.seconds()}


async def single(driver: Driver, order: Order) -> dict[str, object]:
    """Measure one round trip after the other: the milliseconds of each."""
    for number in range(order.warm_up):
        await driver.single(number)
    _settle()
    milliseconds = []
    for number in range(order.count):
        began = time.perf_counter()
        await driver.single(number)
        milliseconds.append((time.perf_counter() - began) * 1000)
    return {"milliseconds": milliseconds}


async def forget(driver: Driver, order: Order) -> dict[str, object]:
    """Measure tasks without results: the wall time from the first publish to the last execution."""
    folder = Path(order.tally)
    await driver.forget(order.warm_up)
    await tally.reached(folder, order.warm_up, seconds=EXECUTED_SECONDS)
    _settle()
    meter = CpuMeter(order.watched)
    began = time.perf_counter()
    await driver.forget(order.count)
    await tally.reached(folder, order.warm_up + order.count, seconds=EXECUTED_SECONDS)
    seconds = time.perf_counter() - began
    return {"tasks": order.count, "seconds": seconds, "cpu_seconds": meter.seconds()}


async def fill(driver: Driver, order: Order) -> dict[str, object]:
    """Measure tasks that no agent takes yet: the wall time from the first publish to the last confirm, and memory."""
    await driver.forget(order.warm_up)
    _settle()
    before = _megabytes()
    began = time.perf_counter()
    await driver.forget(order.count)
    seconds = time.perf_counter() - began
    return {"tasks": order.count, "seconds": seconds, "megabytes": [before, _megabytes()]}


MODES = {Mode.BURST: burst, Mode.SINGLE: single, Mode.FORGET: forget, Mode.FILL: fill}


async def measure(order: Order) -> dict[str, object]:
    """Connect to the order's side, measure, disconnect, and return the figures."""
    async with open_driver(order) as driver:
        return await MODES[order.mode](driver, order)


def main(order: str, answer: str) -> None:
    """Carry out an order, given as JSON, and write its figures to the file `answer`."""
    figures = run_loop(measure(Order.read(order)))
    Path(answer).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
