"""The capability and priority of a task message: from its routing key, or from the CC key of a pinned task."""

from __future__ import annotations

from functools import lru_cache

from coditect.errors import InputError, InvalidTask
from coditect.model.capability import Priority, check_capability_name
from coditect.model.message import HeaderTable, Message
from coditect.model.task import Task
from coditect.wire.routing import key_of, parse_task_key

CAPABILITY = "x-coditect-capability"


def pinned_message(message: Message, task: Task) -> Message:
    """Build the message of a task for one agent's own queue, with a CC key that leads on to the capability's queue."""
    return Message(
        body=message.body,
        headers={**message.headers, "CC": [key_of(task)], CAPABILITY: task.capability},
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        type=message.type,
    )


def task_target(headers: HeaderTable, routing_key: str) -> tuple[str, Priority]:
    """Return the capability and priority of a task message: from its routing key, or a pinned task's first CC key.

    Raises:
        InvalidTask: when the capability is not a valid name.
    """
    carbon = headers.get("CC") if headers else None
    if isinstance(carbon, list) and carbon and isinstance(carbon[0], str) and headers.get(CAPABILITY):
        return target_of(carbon[0])
    return target_of(routing_key)


@lru_cache(maxsize=4096)
def target_of(key: str) -> tuple[str, Priority]:
    """Split a routing key into a capability and a priority.

    Raises:
        InvalidTask: when the capability is not a valid name.
    """
    capability, priority = parse_task_key(key)
    try:
        return check_capability_name(capability), priority
    except InputError as error:
        raise InvalidTask(error.sentence, **error.facts) from error
