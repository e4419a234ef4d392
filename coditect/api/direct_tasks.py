"""The tasks that an API process sent to agents by the broker alone: their results come to this process only."""

from __future__ import annotations

from collections import OrderedDict

from coditect.client.handle import Handle
from coditect.errors import NotFound

MOST_HANDLES = 1_000


class DirectTasks:
    """The handles of the direct tasks that this process submitted last; the oldest make room for new ones."""

    def __init__(self, *, most: int = MOST_HANDLES) -> None:
        self._most = most
        self._handles: OrderedDict[str, Handle] = OrderedDict()

    def add(self, handle: Handle) -> None:
        """Keep the handle of a submitted direct task, and forget the oldest handle if there are too many."""
        self._handles[handle.task_id] = handle
        if len(self._handles) > self._most:
            _, oldest = self._handles.popitem(last=False)
            oldest.forget()

    def get(self, task_id: str) -> Handle:
        """Return the handle of the direct task with the given id.

        Raises:
            NotFound: when this process did not submit the task, or has forgotten it.
        """
        handle = self._handles.get(task_id)
        if handle is None:
            fix = "ask where it was submitted, or submit with `durable`: the control plane keeps such a task"
            raise NotFound("This API process has no such direct task", task_id=task_id, fix=fix)
        return handle
