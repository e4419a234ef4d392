"""The headers of a task that are its publisher's own: they reach the handler, and travel through retries unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coditect.model import arguments
from coditect.model.message import HeaderTable

PREFIX = "x-coditect-"
"""The prefix of the names of all of Coditect's own headers."""
MOST_HEADERS = 64
MOST_OWN_BYTES = 8 * 1024
"""The most bytes that the headers given to one submit have together on the wire."""
LONGEST_NAME = 128
LONGEST_TEXT = 4_096
MOST_BYTES = 16 * 1024
_OF_THE_BROKER = frozenset({"CC", "BCC", "x-death", "x-delivery-count", "x-acquired-count"})
_DEATHS = ("x-first-death-", "x-last-death-")


def checked_headers(parameter: str, given: object) -> HeaderTable:
    """Return a copy of the headers given to a submit, after a check of names, values and size.

    Raises:
        InputError: when a header would not reach the handler as it is; the error names the header and the fix.
    """
    if not isinstance(given, Mapping):
        arguments.refuse(parameter, "These are no headers", given, 'such as {"x-tenant": "blue"}')
    headers = dict(given)
    if len(headers) > MOST_HEADERS:
        arguments.refuse(parameter, "A task has at most 64 headers", len(headers), "put the rest into the input")
    for name, value in headers.items():
        if not isinstance(name, str) or not 1 <= len(name.encode(errors="replace")) <= LONGEST_NAME:
            arguments.refuse(parameter, "A header's name is a text of 1 to 128 bytes", name, "a shorter name")
        if name.startswith(PREFIX) or is_of_the_broker(name):
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
        return len(value) <= LONGEST_TEXT and _is_utf8(value)
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
    left = MOST_BYTES
    for name, value in sorted(headers.items(), key=lambda item: not item[0].startswith(PREFIX)):
        if is_of_the_broker(name) or (name.startswith(PREFIX) and not keep_ours):
            continue
        size = carried_bytes(name, value)
        if 0 < size <= left:
            kept[name] = value
            left -= size
    return kept


def carried_bytes(name: str, value: object) -> int:
    """Return a header's size on the wire in bytes; 0 if its value is too long a text, or no text, number or boolean."""
    if isinstance(value, str):
        return len(name) + len(value.encode()) + 6 if len(value) <= LONGEST_TEXT else 0
    return len(name) + 10 if isinstance(value, bool | int | float) else 0
