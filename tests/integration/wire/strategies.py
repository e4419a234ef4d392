"""Messages as a stranger, or a broken program, may publish them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

OURS = [
    *("deadline", "start-by", "timeout-ms", "max-attempts", "attempt", "publication", "redrive", "depth", "errors"),
    *("published-at", "capability", "workflow", "node", "origin", "fence", "status", "agent", "task", "reason"),
    *("error", "dead-at", "undecodable"),
]
"""Headers that mean something, without their prefix."""

KNOWN_NAMES = [
    *(f"x-coditect-{name}" for name in OURS),
    *("traceparent", "tracestate", "x-first-death-queue", "x-delivery-count", "x-delay", "expiration", ""),
]

BODIES = [b"", b"{}", b'{"say": "x"}', b'{"say": 1}', b"[" * 5_000, b"null", b"\xff\xfe", b'{"say": "\xed\xa0\x80"}']


@dataclass(frozen=True, slots=True)
class Strange:
    """One message."""

    body: bytes
    headers: dict[str, Any]
    message_id: str | None
    type: str | None


def short_text(*, longest: int = 60) -> st.SearchStrategy[str]:
    """Text that AMQP can carry: UTF-8 without surrogates."""
    return st.text(st.characters(codec="utf-8"), max_size=longest)


def header_values() -> st.SearchStrategy[Any]:
    """Everything that both pika and a broker can carry."""
    plain = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.sampled_from([0, 1, -1, 2**31, 2**53, 2**63 - 1, "0", "1", "-1", "9" * 400, "٣"]),
        short_text(longest=300),
        st.binary(max_size=300),
        st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
        st.decimals(-1_000, 1_000, places=2).map(lambda number: Decimal(str(number))),
    )
    return st.recursive(
        plain,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(short_text(longest=20), inner, max_size=4)
        ),
        max_leaves=12,
    )


def strange_messages() -> st.SearchStrategy[Strange]:
    """Messages with any headers, any body, any type."""
    names = st.one_of(st.sampled_from(KNOWN_NAMES), short_text(longest=30))
    copies = st.fixed_dictionaries({}, optional={"CC": st.lists(short_text(longest=40), max_size=3)})
    return st.builds(
        Strange,
        body=st.one_of(st.sampled_from(BODIES), st.binary(max_size=200)),
        headers=st.builds(lambda many, copy: many | copy, st.dictionaries(names, header_values(), max_size=6), copies),
        message_id=st.one_of(st.none(), short_text(longest=30), st.sampled_from(["same", "x" * 255])),
        type=st.one_of(st.none(), st.sampled_from(["coditect.task.v1", "coditect.result.v1"]), short_text()),
    )
