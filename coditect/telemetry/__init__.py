"""Telemetry of all programs: logs, metrics and tracing."""
