"""The metrics of every process: its build, event loop, loop restarts and clock skew, and the broker's certificate."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Protocol

from coditect.telemetry.metrics import Metrics
from coditect.telemetry.names import BUILD_INFO, CERTIFICATE_END, CLOCK_SKEW, LOOP_LAG, LOOP_RESTARTS


class ComparedClock(Protocol):
    """A clock that knows by how many milliseconds the machine's clock is ahead of the registry's; negative: behind."""

    ahead_ms: int


def observe_process(
    metrics: Metrics,
    clock: ComparedClock,
    certificate_end: Callable[[], float | None],
    restarts: Callable[[], int],
) -> None:
    """Register a process's metrics: `clock` gives the skew, `certificate_end` the end of the broker's certificate.

    `restarts` counts the loops that died and were started again.
    """
    build: dict[tuple[str, ...], float] = {(platform.python_version(), version("coditect")): 1.0}

    def ends() -> Mapping[tuple[str, ...], float]:
        end = certificate_end()
        return {} if end is None else {("broker",): end}

    metrics.observe_all(BUILD_INFO, lambda: build)
    metrics.observe_all(CERTIFICATE_END, ends)
    metrics.observe(CLOCK_SKEW, lambda: clock.ahead_ms / 1000)
    metrics.observe(LOOP_RESTARTS, restarts)
    metrics.histogram(LOOP_LAG)
