"""Control messages to agents: cancel, ping, drain, listen, broadcast, log level, handoff offer, breaker state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from coditect.errors import InvalidTask
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.task import Task
from coditect.wire.json import dumps

CANCEL = "coditect.cancel.v1"
"""Order to cancel a task; the content is a `Cancel`."""
PING = "coditect.ping.v1"
"""Question whether an agent is alive; the answer has the agent's id and load.

With `{"task_id": ...}` also that task, and with `{"tasks": true}` the tasks that it runs, the first `MOST_TASKS`. With
`{"metrics": [...]}` also the totals of the named metrics since the start of the agent's process.
"""
PONG = "coditect.pong.v1"
"""The answer to a ping."""
DRAIN = "coditect.drain.v1"
"""Order to finish the running tasks, return all others, and end the process; never sent by broadcast."""
LISTEN = "coditect.listen.v1"
"""News of a listener: agents resume publishing all events, or with `{"subjects": [...]}` those about these subjects."""
BROADCAST = "coditect.broadcast.v1"
"""Data for every agent: the topic in `x-coditect-topic`, the excluded agents in `x-coditect-except`."""
HEARD = "coditect.heard.v1"
"""Answer of an agent's listener to a broadcast with a `reply_to`; the content is any JSON but null."""
LOG_LEVEL = "coditect.log-level.v1"
"""Order to log more or less, for agents and dispatchers; the content is a `LogLevelOrder`."""
HANDOFF = "coditect.handoff.v1"
"""Offer of a running task to one agent; the content is a `HandoffOffer`, the answer is a request to the control plane.
"""
BREAKER_NEWS = "coditect.breaker.v1"
"""State of a circuit breaker of the fleet, which the control plane broadcasts; the content is a `BreakerState`."""

_LONGEST_REASON = 500
MOST_TASKS = 100
"""The largest number of running tasks that an agent names in one answer."""
MOST_SUBJECTS = 100
"""The largest number of subjects that an agent reads from one control message."""
TOPIC = "x-coditect-topic"
EXCEPT = "x-coditect-except"


@dataclass(frozen=True, slots=True)
class Cancel:
    """An order to cancel a task, maybe only its publications up to a number, or only one request (by correlation id).

    The order carries a reason.
    """

    task_id: str
    reason: str = ""
    publication: int | None = None
    """The last publication to cancel; later publications of the task, with the same id, go on."""
    correlation_id: str | None = None
    """The correlation id of the one request to cancel; the child task may be requested again under the same task id."""
    handed_off: bool = False
    """Whether another agent has taken the task over, so that its execution here ends without a report."""

    def means(self, task: Task) -> bool:
        """Tell whether the order to cancel applies to the given task."""
        return (
            task.id == self.task_id
            and (self.publication is None or task.publication <= self.publication)
            and (self.correlation_id is None or task.correlation_id == self.correlation_id)
        )

    @classmethod
    def read(cls, content: Any) -> Self:
        """Parse the content of a cancel message.

        Raises:
            InvalidTask: when the content names no task.
        """
        if not isinstance(content, dict) or not isinstance(content.get("task_id"), str):
            raise InvalidTask("A control message names no task to cancel")
        reason = str(content.get("reason") or "canceled on request")[:_LONGEST_REASON]
        publication, correlation_id = content.get("publication"), content.get("correlation_id")
        return cls(
            content["task_id"],
            reason,
            publication if isinstance(publication, int) else None,
            correlation_id if isinstance(correlation_id, str) else None,
            content.get("handed_off") is True,
        )


LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class LogLevelOrder:
    """An order to a process to set the level of a logger and those below it, for some seconds or until its end."""

    logger: str
    """The logger's name, such as `coditect.agent.runtime`; empty for every logger without a level of its own."""
    level: str | None
    """One of `LOG_LEVELS`; None for the level with which the process began."""
    seconds: float | None = None
    """How long the level lasts; None until the process ends."""

    @classmethod
    def read(cls, content: Any) -> Self:
        """Parse the content of a log-level message.

        Raises:
            InvalidTask: when the content is no such order.
        """
        try:
            logger, level, seconds = content["logger"], content["level"], content.get("seconds")
        except (TypeError, KeyError, AttributeError) as error:
            raise InvalidTask("A control message sets no log level", reason=repr(error)[:200]) from error
        if not isinstance(logger, str) or level not in (None, *LOG_LEVELS):
            raise InvalidTask("A control message sets no log level", level=str(level)[:80])
        return cls(logger, level, float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None)


def message(kind: str, content: Any = None, **headers: Any) -> Message:
    """Build a control message of the given kind, with JSON content."""
    return Message(body=dumps(content), headers=headers, type=kind)


def cancel(
    task_id: str,
    *,
    reason: str = "",
    publication: int | None = None,
    correlation_id: str | None = None,
    handed_off: bool | None = None,
) -> Message:
    """Build the message that tells an agent to cancel a task, its publications up to a number, or only one request."""
    narrowed = {"publication": publication, "correlation_id": correlation_id, "handed_off": handed_off}
    return message(
        CANCEL,
        {"task_id": task_id, "reason": reason} | {name: value for name, value in narrowed.items() if value is not None},
    )


def log_level(order: LogLevelOrder) -> Message:
    """Build a control message that sets the level of a logger."""
    return message(LOG_LEVEL, asdict(order))


def listen(subjects: tuple[str, ...] = ()) -> Message:
    """Build a control message that announces a listener to all events, or to the events about the given subjects."""
    return message(LISTEN, {"subjects": list(subjects)} if subjects else None)


def listened(content: Any) -> tuple[str, ...]:
    """Return the subjects about which the sender of a `LISTEN` message wants events; empty when it wants all events."""
    subjects = content.get("subjects") if isinstance(content, dict) else None
    kept = subjects[:MOST_SUBJECTS] if isinstance(subjects, list) else ()
    return tuple(subject for subject in kept if isinstance(subject, str))


def ping(
    *,
    reply_to: str,
    task_id: str | None = None,
    tasks: bool = False,
    metrics: Iterable[str] = (),
    correlation_id: str | None = None,
) -> Message:
    """Build a control message that asks whether an agent is alive, and also for a task, its `tasks` or its metrics."""
    asked: dict[str, Any] = {"task_id": task_id} if task_id is not None else {}
    asked |= {"tasks": True} if tasks else {}
    asked |= {"metrics": names} if (names := [*metrics]) else {}
    return replace(message(PING, asked or None), reply_to=reply_to, correlation_id=correlation_id or task_id)


def broadcast(topic: str, data: Any, *, excluded: tuple[AgentId | str, ...] = ()) -> Message:
    """Build a control message with data for every agent but the excluded ones (agent ids or agent names)."""
    return Message(body=dumps(data), headers={TOPIC: topic, EXCEPT: list(excluded)}, type=BROADCAST)
