"""The choice of a process's tracing by its settings, which imports OpenTelemetry only where it is used."""

from __future__ import annotations

from coditect.errors import SetupError
from coditect.settings.settings import Settings
from coditect.telemetry.tracing.port import NO_TRACING, Tracing


def open_tracing(settings: Settings, *, service: str, instance: str) -> Tracing:
    """Return the tracing that the settings ask for; `service` and `instance` name the process to a collector.

    Raises:
        SetupError: when OpenTelemetry is not installed.
    """
    if settings.tracing == "off":
        return NO_TRACING
    try:
        from coditect.telemetry.tracing.otlp import open_otlp  # noqa: PLC0415 - optional: the extra `telemetry`
    except ImportError as error:
        fix = "pip install 'coditect[telemetry]', or CODITECT_TRACING=off"
        raise SetupError("Tracing needs OpenTelemetry, which is not installed", missing=error.name, fix=fix) from error
    return open_otlp(service, instance, new_per_second=settings.traces_per_second)
