"""The telemetry of every process: tracing by its settings, and metrics of its build, its event loop and its clock."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version

from coditect.broker.port import Broker
from coditect.errors import SetupError, install_command
from coditect.settings.settings import Settings
from coditect.telemetry.metrics import (
    BROKER_UP,
    BUILD_INFO,
    CERTIFICATE_END,
    CLOCK_SKEW,
    LOOP_LAG,
    LOOP_RESTARTS,
    Metrics,
)
from coditect.telemetry.tracing import NO_TRACING, Tracing


def open_tracing(settings: Settings, *, service: str, instance: str) -> Tracing:
    """Return the tracing that the settings ask for; `service` and `instance` name the process to a collector.

    Raises:
        SetupError: when OpenTelemetry is not installed, or the endpoint of its collector cannot be used.
    """
    if settings.tracing == "off":
        return NO_TRACING
    try:
        from coditect.telemetry.otlp import open_otlp  # noqa: PLC0415 - optional: the extra `telemetry`
    except ImportError as error:
        fix = f"{install_command('telemetry')}, or CODITECT_TRACING=off"
        raise SetupError("Tracing needs OpenTelemetry, which is not installed", missing=error.name, fix=fix) from error
    return open_otlp(service, instance)


@cache
def _build() -> Mapping[tuple[str, ...], float]:
    """Return the build as the metric has it; it is the same for the process's life, and takes milliseconds to read."""
    return {(platform.python_version(), version("coditect")): 1.0}


def observe_process(
    metrics: Metrics, broker: Broker, skew_seconds: Callable[[], float], restarts: Callable[[], int]
) -> None:
    """Register a process's metrics.

    Args:
        metrics: The metrics of the process.
        broker: The process's connection to the broker.
        skew_seconds: How far this machine's clock is ahead of the registry's; negative if it is behind.
        restarts: How many background loops died and were restarted.
    """

    def ends() -> Mapping[tuple[str, ...], float]:
        end = broker.server.certificate_end
        return {} if end is None else {("broker",): end}

    metrics.observe_all(BUILD_INFO, _build)
    metrics.observe_all(CERTIFICATE_END, ends)
    metrics.observe(CLOCK_SKEW, skew_seconds)
    metrics.observe(LOOP_RESTARTS, restarts)
    metrics.observe(BROKER_UP, lambda: float(broker.connected))
    metrics.histogram(LOOP_LAG)
