"""What is written to an agent's mail: one address, or by broadcast to all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from coditect.errors import InvalidTask
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.task import Task
from coditect.wire.json import dumps

CANCEL = "coditect.cancel.v1"
"""Cancel a task; see `Cancel`."""
PING = "coditect.ping.v1"
"""Are you there? Answered to `reply_to` with the agent's id and load; `{"task_id": ...}` also with that task."""
DRAIN = "coditect.drain.v1"
"""Finish what runs, return the rest, end. Never by broadcast."""
LISTEN = "coditect.listen.v1"
"""Somebody listens to events now: muted ones are sent again, or with `{"subjects": [...]}` those about these."""
BROADCAST = "coditect.broadcast.v1"
"""Data for every agent: the topic in `x-coditect-topic`, who shall ignore it in `x-coditect-except`."""

_LONGEST_REASON = 500
MOST_SUBJECTS = 100
"""Of one letter; more are not read."""
TOPIC = "x-coditect-topic"
EXCEPT = "x-coditect-except"


@dataclass(frozen=True, slots=True)
class Cancel:
    """What is to be canceled, and why: `{"task_id": ..., "reason": ...}` and what narrows that down."""

    task_id: str
    reason: str = ""
    publication: int | None = None
    """An owned task may be wanted again under the same id: up to which publication it is not."""
    correlation_id: str | None = None
    """The child of a task may be asked for again under the same id: which request of it is meant."""

    def means(self, task: Task) -> bool:
        """Whether it is about this task."""
        return (
            task.id == self.task_id
            and (self.publication is None or task.publication <= self.publication)
            and (self.correlation_id is None or task.correlation_id == self.correlation_id)
        )

    @classmethod
    def read(cls, content: Any) -> Self:
        """The one in a letter. Raises: InvalidTask."""
        if not isinstance(content, dict) or not isinstance(content.get("task_id"), str):
            raise InvalidTask("A letter names no task to cancel")
        reason = str(content.get("reason") or "canceled on request")[:_LONGEST_REASON]
        publication, correlation_id = content.get("publication"), content.get("correlation_id")
        return cls(
            content["task_id"],
            reason,
            publication if isinstance(publication, int) else None,
            correlation_id if isinstance(correlation_id, str) else None,
        )


def mail(kind: str, content: Any = None, **headers: Any) -> Message:
    """A letter of this kind."""
    return Message(body=dumps(content), headers=headers, type=kind)


def cancel(
    task_id: str, *, reason: str = "", publication: int | None = None, correlation_id: str | None = None
) -> Message:
    """Asks whoever has the task to cancel it; see `Cancel`."""
    narrowed = {"publication": publication, "correlation_id": correlation_id}
    return mail(
        CANCEL,
        {"task_id": task_id, "reason": reason} | {name: one for name, one in narrowed.items() if one is not None},
    )


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
