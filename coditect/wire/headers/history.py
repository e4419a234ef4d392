"""The failed attempts that travel with a task, as JSON text in the header `x-coditect-errors`.

Each attempt is an object of `agent`, `attempt`, `type`, `message`, `reason` and `at_ms`, and of `trace`, the
traceparent of its span, where it was traced; `isolated` is true for an attempt in a process of its own, because an
agent had ended while it ran the task. The text may be foreign, and
every retry writes the text again. Reading therefore bounds the number, depth and length of the attempts, so that the
text can always be written again; reading and writing look at each attempt once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coditect.errors import InvalidTask
from coditect.wire.json import dumps, loads

HEADER = "x-coditect-errors"
MOST_BYTES = 16 * 1024
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
    if len(text) > 2 * MOST_BYTES:
        raise InvalidTask("A header is not text of its length", header=HEADER, longest=2 * MOST_BYTES)
    try:
        attempts = loads(text.encode(errors="surrogatepass"))
    except InvalidTask as error:
        raise InvalidTask("A header is not valid JSON", header=HEADER, reason=error.facts.get("reason")) from error
    if not isinstance(attempts, list):
        raise InvalidTask("A header has the wrong shape", header=HEADER, expected="a JSON list")
    return tuple(_plain(one) for one in attempts[-MOST_ATTEMPTS:] if isinstance(one, dict))


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
    left = MOST_BYTES - 1
    for attempt in reversed(attempts[-MOST_ATTEMPTS:]):
        one = dumps(attempt)
        left -= len(one) + 1
        if left < 0:
            break
        written.append(one)
    return (b"[" + b",".join(reversed(written)) + b"]").decode()
