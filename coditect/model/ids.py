"""Identities. Fresh ones are UUIDv7 and made where the clock is (`coditect.aio.clock`); derived ones here."""

from __future__ import annotations

from hashlib import sha256
from typing import NewType
from uuid import NAMESPACE_OID, UUID, uuid5

TaskId = NewType("TaskId", str)
"""AMQP's `message_id` of a task; ours are UUIDv7, a foreign publisher may use any text up to 255 bytes."""

AgentId = NewType("AgentId", str)
"""`<agent name>-<eight hex digits>`: one per agent process."""

_CHILDREN = uuid5(NAMESPACE_OID, "coditect.child")


def child_task_id(parent: TaskId, capability: str, body: bytes, ordinal: int) -> TaskId:
    """The id of a request that a task makes: the same whenever the parent runs again, in whatever order it asks.

    `ordinal` counts its requests that ask the same.
    """
    asked = sha256(body).hexdigest()
    return TaskId(str(uuid5(_CHILDREN, f"{parent}/{capability}/{asked}/{ordinal}")))


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID of any version."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True
