"""Identities of tasks and agents, and the derived ids of child tasks.

Fresh ids are UUIDv7, and a `Clock` makes them (`coditect.aio.clock`).
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import NewType
from uuid import NAMESPACE_OID, UUID, uuid5

TaskId = NewType("TaskId", str)
"""The `message_id` of a task in AMQP; a UUIDv7, or any text up to 255 bytes from a foreign publisher."""

AgentId = NewType("AgentId", str)
"""The id of one agent process: `<agent name>-<eight hex digits>`, or a text that an HTTP agent chose."""

_GIVEN_ID = re.compile(r".+-[0-9a-f]{8}")
_CHILDREN = uuid5(NAMESPACE_OID, "coditect.child")


def child_task_id(parent: TaskId, capability: str, body: bytes, ordinal: int) -> TaskId:
    """Derive the id of a child task, which a task's handler requests, so that it is the same if the handler runs again.

    `ordinal` counts the parent's requests with equal capability and body.
    """
    asked = sha256(body).hexdigest()
    return TaskId(str(uuid5(_CHILDREN, f"{parent}/{capability}/{asked}/{ordinal}")))


def name_in(agent_id: str) -> str:
    """Return the agent's name in an agent id; empty for a chosen id, which has none."""
    return agent_id[:-9] if _GIVEN_ID.fullmatch(agent_id) else ""


def is_uuid(text: str) -> bool:
    """Tell whether a text is a UUID of any version."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True
