"""Events that agents, clients and dispatchers publish."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
