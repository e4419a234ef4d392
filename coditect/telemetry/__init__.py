"""Telemetry of all programs, at present the formats of logs."""
