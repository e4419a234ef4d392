"""The headers with a format of their own: what a task's publisher added, the failed attempts, and the trace context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, unquote

from coditect.errors import InvalidTask
from coditect.model import arguments
from coditect.model.message import HeaderTable
from coditect.wire.json import dumps, loads

HEADER_PREFIX = "x-coditect-"
"""The prefix of the names of all of Coditect's own headers."""
MOST_HEADERS = 64
MOST_OWN_BYTES = 8 * 1024
"""The most bytes that the headers given to one submit have together on the wire."""
MAX_HEADER_NAME_BYTES = 128
MAX_HEADER_CHARS = 4_096
FOREIGN_BYTES_LIMIT = 16 * 1024
_OF_THE_BROKER = frozenset({"CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count"})
_DEATHS = ("x-first-death-", "x-last-death-")


def checked_headers(parameter: str, table: object) -> HeaderTable:
    """Return a copy of the headers given to a submit, after a check of names, values and size.

    Raises:
        InputError: when a header would not reach the handler as it is; the error names the header and the fix.
    """
    if not isinstance(table, Mapping):
        arguments.refuse(parameter, "These are no headers", table, 'such as {"x-tenant": "blue"}')
    headers = dict(table)
    if len(headers) > MOST_HEADERS:
        arguments.refuse(parameter, "A task has at most 64 headers", len(headers), "put the rest into the input")
    for name, value in headers.items():
        if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= MAX_HEADER_NAME_BYTES:
            arguments.refuse(parameter, "A header's name is a text of 1 to 128 bytes", name, "a shorter name")
        if name.startswith(HEADER_PREFIX) or is_of_the_broker(name):
            arguments.refuse(parameter, "This header is not for publishers", name, "another name, such as x-tenant")
        if not _is_plain(value):
            fix = "a text of at most 4,096 characters, a truth value, a number of 64 bits; the rest into the input"
            arguments.refuse(parameter, "A header's value is plain and short", value, fix)
    if (size := sum(carried_bytes(name, value) for name, value in headers.items())) > MOST_OWN_BYTES:
        arguments.refuse(parameter, "A task's headers have at most 8 KiB", size, "put the rest into the input")
    return headers


def is_of_the_broker(name: str) -> bool:
    """Tell whether a header is one that brokers write or act on, such as `x-death`, and that no publisher may set."""
    return name in _OF_THE_BROKER or name.startswith(_DEATHS)


def _is_plain(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_HEADER_CHARS and _is_utf8(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return isinstance(value, float)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def foreign_headers(headers: Mapping[str, Any], *, keep_ours: bool = False) -> dict[str, Any]:
    """Return a message's text, number and boolean headers, at most 16 KiB in all, without the broker's and Coditect's.

    Headers of Coditect are copied only with `keep_ours`, and then before the others.

    All headers of a message travel in one frame, and the headers that Coditect adds must fit in, too. A copied
    `x-death` makes RabbitMQ 3.10 drop the message once it names the target queue.
    """
    kept: dict[str, Any] = {}
    left = FOREIGN_BYTES_LIMIT
    for name, value in sorted(headers.items(), key=lambda item: not item[0].startswith(HEADER_PREFIX)):
        if is_of_the_broker(name) or (name.startswith(HEADER_PREFIX) and not keep_ours):
            continue
        size = carried_bytes(name, value)
        if 0 < size <= left:
            kept[name] = value
            left -= size
    return kept


def carried_bytes(name: str, value: object) -> int:
    """Return a header's size on the wire in bytes; 0 if its value is too long a text, or no text, number or boolean."""
    if isinstance(value, str):
        return len(name) + len(value.encode()) + 6 if len(value) <= MAX_HEADER_CHARS else 0
    return len(name) + 10 if isinstance(value, bool | int | float) else 0


# The failed attempts that travel with a task, as JSON text in the header `x-coditect-errors`.
#
# Each attempt is an object of `agent`, `attempt`, `type`, `message`, `reason` and `at_ms`, and of `trace`, the
# traceparent of its span, where it was traced; `isolated` is true for an attempt in a process of its own, because an
# agent had ended while it ran the task. The text may be foreign, and every retry writes the text again. Reading
# therefore bounds the number, depth and length of the attempts, so that the text can always be written again; reading
# and writing look at each attempt once.

ERRORS_HEADER = "x-coditect-errors"
HISTORY_BYTES_LIMIT = 16 * 1024
"""The longest history header that is written, in bytes; reading accepts twice as much."""
MOST_ATTEMPTS = 100
"""How many failed attempts, the latest ones, a task carries."""
_LONGEST = 500
_KINDS: Mapping[str, type] = {
    "agent": str,
    "attempt": int,
    "type": str,
    "message": str,
    "reason": str,
    "at_ms": int,
    "trace": str,
    "isolated": bool,
}


def read_history(text: str) -> tuple[Mapping[str, Any], ...]:
    """Parse the header text into the latest failed attempts, oldest first; entries that are no objects are left out.

    Raises:
        InvalidTask: when the text is too long, no JSON, or no list.
    """
    if len(text) > 2 * HISTORY_BYTES_LIMIT:
        raise InvalidTask("A header is not text of its length", header=ERRORS_HEADER, longest=2 * HISTORY_BYTES_LIMIT)
    try:
        attempts = loads(text.encode(errors="surrogatepass"))
    except InvalidTask as error:
        raise InvalidTask(
            "A header is not valid JSON", header=ERRORS_HEADER, reason=error.facts.get("reason")
        ) from error
    if not isinstance(attempts, list):
        raise InvalidTask("A header has the wrong shape", header=ERRORS_HEADER, expected="a JSON list")
    return tuple(_plain(attempt) for attempt in attempts[-MOST_ATTEMPTS:] if isinstance(attempt, dict))


def _plain(attempt: Mapping[str, Any]) -> dict[str, Any]:
    """Return the known fields of a failed attempt that have the right type, with long texts shortened."""
    known = {name: attempt.get(name) for name in _KINDS}
    return {
        name: value[:_LONGEST] if isinstance(value, str) else value
        for name, value in known.items()
        if type(value) is _KINDS[name]
    }


def history_header(attempts: tuple[Mapping[str, Any], ...]) -> str:
    """Write failed attempts (oldest first) as the header text; drop the oldest when the text would be too long."""
    written: list[bytes] = []
    left = HISTORY_BYTES_LIMIT - 1
    for attempt in reversed(attempts[-MOST_ATTEMPTS:]):
        text = dumps(attempt)
        left -= len(text) + 1
        if left < 0:
            break
        written.append(text)
    return (b"[" + b",".join(reversed(written)) + b"]").decode()


TRACEPARENT = "traceparent"
MAX_TRACE_CHARS: Mapping[str, int] = {TRACEPARENT: 128, "tracestate": 1024, "baggage": 8192}
"""The trace headers of a message, each with the number of characters that it may have."""
_NAMES = frozenset(MAX_TRACE_CHARS)
WORKFLOW_ID, WORKFLOW_NAME, NODE_ID = "coditect.workflow.id", "coditect.workflow.name", "coditect.node_id"
_MEMBERS = frozenset((WORKFLOW_ID, WORKFLOW_NAME, NODE_ID))
"""The baggage members by which every span of a workflow names its workflow and node, in any process."""


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
    for name, longest in MAX_TRACE_CHARS.items():
        value = headers.get(name)
        if value is None:
            continue
        if not isinstance(value, str) or len(value) > longest:
            raise InvalidTask("A header is not text of its length", header=name, longest=longest)
        found[name] = value
    return found


def with_members(baggage: str | None, members: Mapping[str, str]) -> str | None:
    """Return W3C baggage with members in place of earlier ones; unchanged if it would be longer than allowed."""
    pairs = (baggage or "").split(",")
    kept = [pair for pair in pairs if pair.strip() and pair.partition("=")[0].strip() not in members]
    written = ",".join((*kept, *(f"{name}={quote(text, safe='')}" for name, text in members.items())))
    return written if len(written) <= MAX_TRACE_CHARS["baggage"] else baggage


def workflow_members(baggage: str | None) -> dict[str, str]:
    """Return the workflow's id and name and the node's name that baggage carries, by their names as span attributes."""
    if not baggage or "coditect." not in baggage:
        return {}
    pairs = (member.partition(";")[0].partition("=") for member in baggage.split(","))
    return {name.strip(): unquote(text.strip()) for name, _, text in pairs if name.strip() in _MEMBERS}
