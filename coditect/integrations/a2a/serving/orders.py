"""The reading of A2A messages: which skill of the fleet a message asks for, and the input of its task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from a2a.types.a2a_pb2 import Part, SendMessageRequest
from a2a.utils.errors import ContentTypeNotSupportedError, PushNotificationNotSupportedError, UnsupportedOperationError

from coditect.errors import InputError, InvalidTask
from coditect.integrations.a2a.parts import plain, value_of
from coditect.integrations.a2a.serving.card import output_modes
from coditect.integrations.tools import admits, is_object, resolved
from coditect.model.capability import CapabilitySpec, nearest_names
from coditect.wire.json import loads

SKILL = "skillId"
"""The name in a message's metadata under which a client says which skill it wants; A2A 1.0 has no field for it."""
MOST_NAMED = 10


def skill_of(request: SendMessageRequest, skills: Mapping[str, CapabilitySpec]) -> CapabilitySpec:
    """Return the capability that a message's metadata name, or, if they name none, the fleet's only one.

    Raises:
        InputError: when no skill is named and there are several, or no living agent offers the named one.
    """
    named = plain(request.message.metadata).get(SKILL) or plain(request.metadata).get(SKILL)
    if named is None and len(skills) == 1:
        return next(iter(skills.values()))
    offered = sorted(skills)[:MOST_NAMED]
    if named is None:
        fix = f'"metadata": {{"{SKILL}": "..."}} in the message, with an id of the agent card'
        raise InputError("The message names no skill", skills=offered, fix=fix)
    if (found := skills.get(str(named))) is None:
        near = list(nearest_names(str(named), skills)) or offered
        raise InputError("No living agent offers this skill", skill=str(named)[:200], nearest=near, fix="one of these")
    return found


def check_wishes(request: SendMessageRequest, spec: CapabilitySpec) -> None:
    """Check that the fleet can answer in a media type that the sender takes, and without push notifications.

    Raises:
        ContentTypeNotSupportedError: when the sender takes none of the skill's media types.
        PushNotificationNotSupportedError: when the sender wants push notifications.
    """
    wishes, modes = request.configuration, output_modes(spec)
    if wishes.HasField("task_push_notification_config"):
        raise no_push()
    accepted = {mode.partition(";")[0].strip().lower() for mode in wishes.accepted_output_modes}
    ranges = {"*/*", *modes, *(f"{mode.partition('/')[0]}/*" for mode in modes)}
    if accepted and not accepted & ranges:
        fix = f"accept {' or '.join(modes)}"
        raise ContentTypeNotSupportedError(f"The skill answers in none of the accepted media types; {fix}")


def input_of(parts: Sequence[Part], spec: CapabilitySpec) -> Any:
    """Return a task's input from a message's parts; a text may be read as JSON, or be an object's one required field.

    A text that the capability's schema does not admit is read as JSON. If it is none, it is the only required field.

    Raises:
        InputError: when a part is a file or a link, or there are none.
    """
    given = value_of(parts)
    if not isinstance(given, str) or admits(spec.input_schema, given):
        return given
    try:
        return loads(given.encode())
    except InvalidTask:
        schema = resolved(spec.input_schema)
        required = schema.get("required")
        if is_object(schema) and isinstance(required, list) and len(required) == 1:
            return {str(required[0]): given}
        return given


def refuse_continuation(task_id: str) -> UnsupportedOperationError:
    """Return the error for a message that answers no approval: its task waits for none, or its text is no answer."""
    fix = "send a message without taskId, in the same context, for a new task"
    return UnsupportedOperationError(f"The task {task_id[:200]} takes no more messages; {fix}", data={"fix": fix})


def no_push() -> PushNotificationNotSupportedError:
    """Return the error for a request of push notifications."""
    fix = "follow the task by SubscribeToTask or GetTask, or have a webhook of the API post the task's events"
    return PushNotificationNotSupportedError(f"The fleet sends no push notifications; {fix}", data={"fix": fix})
