"""Events: what happened, to what, and the keys by which listeners find it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_KEY_BYTES = 255


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `type` is its routing key on `coditect.events`, e.g. ``task.completed``."""

    type: str
    source: str
    """URI reference of who says so, e.g. ``/agents/reviewer-1a2b3c4d``."""
    id: str
    time_ms: int
    """Milliseconds since the epoch."""
    subject: str = ""
    """What it is about: a task id, an agent id."""
    data: Mapping[str, Any] = field(default_factory=dict)


def subject_key(type_: str, subject: str) -> str | None:
    """The second routing key of an event, `<type>.<subject>`: a listener who follows one subject binds nothing else.

    Of a pattern, what such a listener binds. None where AMQP has no room for it.
    """
    key = f"{type_}.{subject}"
    return key if subject and len(key.encode(errors="replace")) <= MOST_KEY_BYTES else None
