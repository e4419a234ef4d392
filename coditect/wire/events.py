"""Events as CloudEvents 1.0 in AMQP's binary mode (`ce-` headers, data in the body), and their routing keys."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from coditect.errors import InvalidTask
from coditect.model import arguments
from coditect.model.message import Event, Message
from coditect.wire.json import dumps, loads

TYPE_PREFIX = "dev.coditect."
TYPE_SUFFIX = ".v1"
MOST_KEY_BYTES = 255
MOST_SUBJECT_BYTES = 8_192
EARLIEST_MS = -62_135_596_800_000
LATEST_MS = 253_402_300_799_000


def check_event(type_: str, subject: str, data: Mapping[str, Any]) -> None:
    """Check that an event can be published, whether or not it has a listener.

    Raises:
        InputError: when the type is no routing key, or the subject no text of at most 8,192 bytes.
        InvalidTask: when JSON cannot express the data.
    """
    arguments.text("type_", type_, shortest=1, longest=MOST_KEY_BYTES)
    arguments.text("subject", subject, longest=MOST_SUBJECT_BYTES)
    dumps(dict(data))


def event_message(event: Event) -> Message:
    """Build an event's message, with type ``dev.coditect.<type>.v1`` and, for a subject, a second routing key."""
    headers: dict[str, Any] = {
        "ce-specversion": "1.0",
        "ce-id": event.id,
        "ce-type": f"{TYPE_PREFIX}{event.type}{TYPE_SUFFIX}",
        "ce-source": event.source,
        "ce-time": _instant(event.time_ms),
    }
    if event.subject:
        headers["ce-subject"] = event.subject
    if (key := subject_key(event.type, event.subject)) is not None:
        headers["CC"] = [key]
    return Message(body=dumps(dict(event.data)), headers=headers)


def as_document(event: Event) -> dict[str, Any]:
    """Return an event as a CloudEvent in JSON's structured mode, with its short type, such as `task.completed`."""
    subject = {"subject": event.subject} if event.subject else {}
    return {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        **subject,
        "time": _instant(event.time_ms),
        "data": dict(event.data),
    }


def _instant(time_ms: int) -> str:
    # at an end of the calendar, the time that a stranger wrote with an offset may have no UTC
    moment = datetime.fromtimestamp(min(max(time_ms, EARLIEST_MS), LATEST_MS) / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def subject_key(type_: str, subject: str) -> str | None:
    """Return the second routing key of an event, `<type>.<subject>`, by which a listener follows one subject.

    With a pattern as type, the result is the key that such a listener binds. None for an empty subject, and for a key
    over AMQP's 255 bytes.
    """
    key = f"{type_}.{subject}"
    return key if subject and len(key.encode(errors="replace")) <= MOST_KEY_BYTES else None


def read_event(message: Message, arrived_ms: int) -> Event:
    """Parse the event in a message; an event without a time, which CloudEvents allows, gets the time of its arrival.

    Raises:
        InvalidTask: when the message is no CloudEvent.
    """
    headers = message.headers
    try:
        full_type, source, identity = str(headers["ce-type"]), str(headers["ce-source"]), str(headers["ce-id"])
        time_ms = arrived_ms
        if (written := headers.get("ce-time")) is not None:
            moment = datetime.fromisoformat(str(written))
            time_ms = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (KeyError, ValueError) as error:
        raise InvalidTask("The message is no CloudEvent", reason=repr(error)) from error
    data = loads(message.body) if message.body else {}
    return Event(
        type=full_type.removeprefix(TYPE_PREFIX).removesuffix(TYPE_SUFFIX),
        source=source,
        id=identity,
        time_ms=time_ms,
        subject=str(headers.get("ce-subject", "")),
        data=data if isinstance(data, dict) else {"value": data},
    )
