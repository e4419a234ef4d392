"""Pacing of an agent that fails tasks for reasons of its own: it slows down, reports that, and recovers by itself.

An agent without file descriptors, memory or disk space fails tasks at once that its neighbours could do, and so
attracts more of them. So the agent keeps the slot of each task that failed for such a reason for a while, longer each
time and one slot after the other: soon it takes no more than one task in a while, until one succeeds. An error that a
handler makes of its input is no such reason, so a stream of bad tasks slows no agent.
"""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict

from coditect.agent.execution.handler import HandlerEnd
from coditect.aio.backoff import Backoff
from coditect.broker.port import Delivery
from coditect.model.ids import TaskId
from coditect.model.result import Status, ask_error
from coditect.model.task import Task

log = logging.getLogger(__name__)

PAUSES = Backoff(0.2, 5.0)
MOST_CAUSES = 10
MOST_RETURNS = 2
MOST_FAILED = 10_000
"""Number of tasks with failed attempts that are remembered, the latest ones."""
_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Pacing:
    """The slowdown of an agent process that fails tasks for want of memory, disk space or file descriptors."""

    def __init__(self) -> None:
        self._failures = 0
        self._kept = 0
        self._failed: OrderedDict[TaskId, None] = OrderedDict()
        self.trouble = ""
        """The reason of its own for which the process fails tasks; empty when there is none."""

    def for_another(self, task: Task, delivery: Delivery) -> bool:
        """Tell whether to return a task, at most twice, for another agent, since it failed in this process before."""
        return task.id in self._failed and delivery.delivery_count < MOST_RETURNS

    def pause_seconds(self, task: Task, ended: HandlerEnd) -> float:
        """Record an attempt's end, and return the seconds it keeps its slot: 0 unless memory, disk or files ran out.

        The pause slows the agent down; after it, call `over`.
        """
        if ended.status is Status.FAILED and task.id is not None:
            self._failed[task.id] = None
            if len(self._failed) > MOST_FAILED:
                self._failed.popitem(last=False)
        reason = own_reason(ended.error) if ended.status is Status.FAILED else ""
        if not reason:
            if ended.status is Status.COMPLETED and self.trouble:
                log.warning("Tasks succeed here again", extra={"reason": self.trouble, "failures": self._failures})
                self._failures, self.trouble = 0, ""
            return 0.0
        if not self.trouble:
            fix = "see to what this process lacks (ulimit -n, memory, disk); until a task succeeds it takes few"
            log.error("Tasks fail here for a reason of this agent's own", extra={"reason": reason, "fix": fix})
        self.trouble = reason
        self._failures += 1
        self._kept += 1
        return self._kept * PAUSES.pause(self._failures)

    def over(self) -> None:
        """Record that a slot is free again after the pause that slowed the agent down."""
        self._kept -= 1


def own_reason(error: BaseException | None) -> str:
    """Return what the process ran out of, such as memory, if that caused an error; "" for any other error."""
    return ask_error(lambda: _own_reason(error), otherwise="")


def _own_reason(error: BaseException | None) -> str:
    for _ in range(MOST_CAUSES):
        if error is None:
            break
        if isinstance(error, MemoryError):
            return "out of memory"
        if isinstance(error, OSError) and error.errno in _OWN:
            return f"{errno.errorcode[error.errno]}: {error.strerror}"
        error = error.__cause__ if error.__cause__ is not None else error.__context__
    return ""
