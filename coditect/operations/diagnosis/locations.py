"""The places where a task was found, and the verdict that they give; pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.operations.diagnosis.explain import Explanation, TakeVerdict

UNSEEN = (
    "it ended: only who submitted it learns how, and a task that completed leaves nothing behind",
    "it is in an agent's inbox or on its way to a slot, for at most a second or so",
    "it is with a consumer that is no agent of this fleet, or with an agent that did not answer",
)
"""Sentences about where a task can be although the search did not find it, since direct tasks have no record."""
UNSEEN_IN_ITS_QUEUE = "it waits in its capability's queue: name it with --capability to look there"


class TaskPlace(StrEnum):
    """A kind of place where a task can be, listed from the most telling (at an agent) to the least (unrouted)."""

    WORKING = "working"
    WAITING = "waiting"
    RETRYING = "retrying"
    DEAD = "dead"
    UNROUTED = "unrouted"


@dataclass(frozen=True, slots=True)
class TaskStory:
    """The past of a task, read from its message: failed attempts, redrives, and when it was published and given up."""

    errors: tuple[Mapping[str, object], ...] = ()
    """The failed attempts, oldest first, as `wire.headers.history` has them."""
    redrives: int = 0
    published_at_ms: int | None = None
    dead_at_ms: int | None = None


UNTOLD = TaskStory()
"""The story of a task whose message was not seen, since an agent has it."""


@dataclass(frozen=True, slots=True)
class TaskLocation:
    """A place where a task was found: an agent or a queue, with the position in the queue."""

    place: TaskPlace
    capability: str | None
    priority: Priority | None
    queue: str | None = None
    agent_id: AgentId | None = None
    before: int = 0
    """The number of messages ahead of the task in the queue."""
    reason: str = ""
    """The reason why the task was given up, of a dead letter."""
    story: TaskStory = UNTOLD
    key: str = ""
    """The key for whose lock the task waits at its agent, as `coditect lock show` names it; empty when it runs."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search for a task: where it was found, and where the search looked."""

    locations: tuple[TaskLocation, ...]
    """The places where the task was found."""
    looked: tuple[str, ...]
    """The queues that were searched."""
    cut: tuple[str, ...]
    """The queues that hold more messages than the search looked at."""
    asked: int
    """The number of agents that answered whether they run the task."""

    @property
    def best(self) -> TaskLocation | None:
        """The most telling place where the task was found, an agent before a queue; None if it was not found.

        There may be two places after a redrive or an agent's death.
        """
        order = list(TaskPlace)
        return min(self.locations, key=lambda one: order.index(one.place), default=None)


def unseen(found: Found, *, named: bool) -> tuple[str, ...]:
    """Return sentences on where a task that was not found may still be: the places that the search did not see."""
    further = tuple(f"it lies further back in {queue} than was looked: --most" for queue in found.cut)
    return (*(() if named else (UNSEEN_IN_ITS_QUEUE,)), *further, *UNSEEN)


def task_verdict(task_id: str, found: Found, explanation: Explanation | None, *, named: bool) -> TakeVerdict:
    """Return a sentence that says where one task is, or that it was not found, together with a fix."""
    seen = found.best
    if seen is None:
        fix = "see where it can be; ask who submitted it" if named else "name its capability with --capability"
        return TakeVerdict(f"{task_id} was not found", fix, known=False)
    match seen.place:
        case TaskPlace.WORKING:
            return _works(seen)
        case TaskPlace.WAITING:
            return _waits(seen, explanation)
        case TaskPlace.RETRYING:
            return TakeVerdict(f"An attempt failed; it waits in {seen.queue} for the next one", "wait")
        case TaskPlace.DEAD:
            about = f"coditect dead show {task_id} --capability {seen.capability}"
            again = f"coditect dead redrive --id {task_id} --capability {seen.capability}"
            return TakeVerdict(f"It was given up: {seen.reason}", f"{about}; once mended: {again}")
        case TaskPlace.UNROUTED:
            return TakeVerdict(
                f"No agent offered {seen.capability} when it was published; it was put aside",
                f"start an agent that declares it, then: coditect dead redrive --id {task_id}",
            )


def _works(seen: TaskLocation) -> TakeVerdict:
    if not seen.key:
        return TakeVerdict(f"{seen.agent_id} works on it", takes=True)
    fix = f"wait until those before it have ended: coditect lock show '{seen.key}'"
    return TakeVerdict(f"{seen.agent_id} has it; it waits for its key {seen.key}, which others hold", fix)


def _waits(seen: TaskLocation, explanation: Explanation | None) -> TakeVerdict:
    where = f"It waits in {seen.queue}, {seen.before} before it"
    if explanation is None:
        return TakeVerdict(where)
    rest = explanation.verdict
    return TakeVerdict(f"{where}. {rest.sentence}", rest.fix, takes=rest.takes)
