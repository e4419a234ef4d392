"""An agent that fails tasks for reasons of its own slows down, says so, and recovers by itself.

Out of file descriptors or memory, or with a full disk, an agent fails at once what its neighbours could do, and so
attracts it. It therefore keeps the slot of each task that failed so for a while, longer each time and one after the
other: soon it takes no more than one task in a while, until one succeeds. What a handler makes of its input is no such
reason, so a stream of bad tasks slows nobody.
"""

from __future__ import annotations

import errno
import logging
from collections import OrderedDict

from coditect.agent.execution.handler import HandlerEnd
from coditect.broker.port import Delivery
from coditect.model.ids import TaskId
from coditect.model.result import Status
from coditect.model.task import Task

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
MOST_CAUSES = 10
MOST_RETURNS = 2
MOST_FAILED = 10_000
"""Tasks whose attempts failed here, which are remembered: the latest."""
_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Pacing:
    """What one agent process fails of by itself, and for how long it keeps slots therefore."""

    def __init__(self) -> None:
        self._failures = 0
        self._kept = 0
        self._failed: OrderedDict[TaskId, None] = OrderedDict()
        self.trouble = ""
        """Why tasks fail here; empty while they do not."""

    def for_another(self, task: Task, delivery: Delivery) -> bool:
        """Whether a retry that came to the agent that failed it goes back, twice at most, for another to take it."""
        return task.attempt > 1 and task.id in self._failed and delivery.delivery_count < MOST_RETURNS

    def pause_seconds(self, task: Task, ended: HandlerEnd) -> float:
        """For how long the slot of an attempt that ended so is kept; to be followed by `over` when it is not 0."""
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
        longer = FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures - 1, 10)
        return self._kept * min(LONGEST_PAUSE_SECONDS, longer)

    def over(self) -> None:
        """A slot was kept for long enough."""
        self._kept -= 1


def own_reason(error: BaseException | None) -> str:
    """What the process lacked, by the error or one that it came from; empty for any other error."""
    for _ in range(MOST_CAUSES):
        if error is None:
            break
        if isinstance(error, MemoryError):
            return "out of memory"
        if isinstance(error, OSError) and error.errno in _OWN:
            return f"{errno.errorcode[error.errno]}: {error.strerror}"
        error = error.__cause__ or error.__context__
    return ""
