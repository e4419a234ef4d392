"""Telemetry of all programs: log formats, and the metrics of a process."""
