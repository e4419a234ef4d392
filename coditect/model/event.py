"""Events as CloudEvents 1.0: attributes in `ce-` headers, data in the body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from coditect.errors import InvalidTask
from coditect.model.json import dumps, loads
from coditect.model.message import Message

TYPE_PREFIX = "dev.coditect."
TYPE_SUFFIX = ".v1"
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


def event_message(event: Event) -> Message:
    """The message of an event: type ``dev.coditect.<type>.v1``, routed by its type and by that with its subject."""
    moment = datetime.fromtimestamp(event.time_ms / 1000, UTC)
    headers: dict[str, Any] = {
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-type": f"{TYPE_PREFIX}{event.type}{TYPE_SUFFIX}",
        "ce-source": event.source,
        "ce-time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    if event.subject:
        headers["ce-subject"] = event.subject
    if (key := subject_key(event.type, event.subject)) is not None:
        headers["CC"] = [key]
    return Message(body=dumps(dict(event.data)), headers=headers)


def read_event(message: Message) -> Event:
    """The event in a message.

    Raises: InvalidTask when it is no CloudEvent.
    """
    headers = message.headers
    try:
        full_type, moment = str(headers["ce-type"]), datetime.fromisoformat(str(headers["ce-time"]))
        source, identity = str(headers["ce-source"]), str(headers["ce-id"])
    except (KeyError, ValueError) as error:
        raise InvalidTask("The message is no CloudEvent", reason=repr(error)) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    data = loads(message.body) if message.body else {}
    return Event(
        type=full_type.removeprefix(TYPE_PREFIX).removesuffix(TYPE_SUFFIX),
        source=source,
        id=identity,
        time_ms=round(moment.timestamp() * 1000),
        subject=str(headers.get("ce-subject", "")),
        data=data if isinstance(data, dict) else {"value": data},
    )
