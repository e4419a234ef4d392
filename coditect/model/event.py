"""Events that agents, clients and dispatchers publish, and the routing keys by which listeners find an event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_KEY_BYTES = 255


@dataclass(frozen=True, slots=True)
class Event:
    """A notification that something happened; `type` is the routing key on `coditect.events`: ``task.completed``."""

    type: str
    source: str
    """URI reference of the publisher, e.g. ``/agents/reviewer-1a2b3c4d``."""
    id: str
    time_ms: int
    """The instant of the event, in milliseconds since the epoch."""
    subject: str = ""
    """Id of the task or agent that the event is about."""
    data: Mapping[str, Any] = field(default_factory=dict)


def subject_key(type_: str, subject: str) -> str | None:
    """Return the second routing key of an event, `<type>.<subject>`, by which a listener follows one subject.

    With a pattern as type, the result is the key that such a listener binds. None for an empty subject, and for a key
    over AMQP's 255 bytes.
    """
    key = f"{type_}.{subject}"
    return key if subject and len(key.encode(errors="replace")) <= MOST_KEY_BYTES else None
