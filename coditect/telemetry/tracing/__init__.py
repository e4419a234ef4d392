"""Tracing: the port by which the parts of a process make spans, and its adapter for OpenTelemetry.

`port` has the span, the port, and the port's adapter for no tracing; `messaging` has the names and attributes of our
spans by OpenTelemetry's conventions. Neither imports OpenTelemetry. `otlp` does, and is imported when a process's
settings ask for tracing.
"""
