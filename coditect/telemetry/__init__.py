"""Telemetry of all programs: logs."""
