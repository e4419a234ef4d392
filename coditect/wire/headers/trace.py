"""The W3C trace context of a message: the AMQP headers `traceparent`, `tracestate` and `baggage`, as text."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from coditect.errors import InvalidTask
from coditect.model.message import HeaderTable

TRACEPARENT = "traceparent"
LONGEST: Mapping[str, int] = MappingProxyType({TRACEPARENT: 128, "tracestate": 1024, "baggage": 8192})
"""The trace headers of a message, each with the number of characters that it may have."""
_NAMES = frozenset(LONGEST)


class TraceContext(Protocol):
    """The trace context that a message passes on: that of a task, or of a span of this process."""

    @property
    def traceparent(self) -> str | None:
        """The trace, the span and its flags, as W3C Trace Context writes them; None outside of any trace."""

    @property
    def tracestate(self) -> str | None:
        """The vendors' part of the trace context, passed on unchanged."""

    @property
    def baggage(self) -> str | None:
        """The values that the first sender gives to all parts of the trace, as W3C Baggage; passed on unchanged."""


def put_trace(headers: dict[str, Any], place: TraceContext) -> None:
    """Add a trace context to a message's headers."""
    if place.traceparent is not None:
        headers[TRACEPARENT] = place.traceparent
    if place.tracestate is not None:
        headers["tracestate"] = place.tracestate
    if place.baggage is not None:
        headers["baggage"] = place.baggage


def read_trace(headers: HeaderTable) -> dict[str, Any]:
    """Return the trace headers of a message, unparsed.

    Raises:
        InvalidTask: when a header is no text, or longer than it may be.
    """
    if _NAMES.isdisjoint(headers):
        return {}
    found: dict[str, Any] = {}
    for name, longest in LONGEST.items():
        value = headers.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or len(value) > longest:
            raise InvalidTask("A header is not text of its length", header=name, longest=longest)
        found[name] = value
    return found
