"""What is written to an agent's mail: one address, or by broadcast to all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from coditect.model.ids import AgentId
from coditect.model.json import dumps
from coditect.model.message import Message

CANCEL = "coditect.cancel.v1"
"""Cancel a task: `{"task_id": ..., "reason": ...}`, of an owned one also `"publication"`: up to which one."""
PING = "coditect.ping.v1"
"""Are you there? Answered to `reply_to` with the agent's id and load; `{"task_id": ...}` also with that task."""
DRAIN = "coditect.drain.v1"
"""Finish what runs, return the rest, end. Never by broadcast."""
LISTEN = "coditect.listen.v1"
"""Somebody listens to events now: muted ones are sent again, or with `{"subjects": [...]}` those about these."""
BROADCAST = "coditect.broadcast.v1"
"""Data for every agent: the topic in `x-coditect-topic`, who shall ignore it in `x-coditect-except`."""

MOST_SUBJECTS = 100
"""Of one letter; more are not read."""
TOPIC = "x-coditect-topic"
EXCEPT = "x-coditect-except"


def mail(kind: str, content: Any = None, **headers: Any) -> Message:
    """A letter of this kind."""
    return Message(body=dumps(content), headers=headers, type=kind)


def cancel(task_id: str, *, reason: str = "", publication: int | None = None) -> Message:
    """Asks whoever has the task to cancel it.

    An owned task may be wanted again under the same id: with its last publication agents know what not to start.
    """
    content: dict[str, Any] = {"task_id": task_id, "reason": reason}
    return mail(CANCEL, content if publication is None else {**content, "publication": publication})


def listen(subjects: tuple[str, ...] = ()) -> Message:
    """Tells who publishes events that somebody listens to all, or to those about these subjects."""
    return mail(LISTEN, {"subjects": list(subjects)} if subjects else None)


def listened(content: Any) -> tuple[str, ...]:
    """The subjects in the content of a `LISTEN` letter; none when it is about all."""
    subjects = content.get("subjects") if isinstance(content, dict) else None
    return tuple(one for one in subjects[:MOST_SUBJECTS] if isinstance(one, str)) if isinstance(subjects, list) else ()


def ping(*, reply_to: str, task_id: str | None = None, correlation_id: str | None = None) -> Message:
    """Asks an agent whether it is there, and with a task whether it works on that."""
    content = None if task_id is None else {"task_id": task_id}
    return replace(mail(PING, content), reply_to=reply_to, correlation_id=correlation_id or task_id)


def broadcast(topic: str, data: Any, *, excluded: tuple[AgentId | str, ...] = ()) -> Message:
    """Data for every agent but the excluded ones (agent ids or agent names)."""
    return Message(body=dumps(data), headers={TOPIC: topic, EXCEPT: list(excluded)}, type=BROADCAST)
