"""A started workflow for callers without an event loop."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from coditect.model.duration import Duration
from coditect.run import DEFAULT_TIMEOUT, Run
from coditect.sync import Blocking, iterating, waiting

T = TypeVar("T")


class SyncRun(Blocking[Run]):
    """A started workflow: what it is, what became of it, and what may be done about it. Made by `SyncClient.start`."""

    @property
    def id(self) -> str:
        """The workflow's id; any process may ask with it."""
        return self._inner.id

    @property
    def new(self) -> bool:
        """Whether the start that made this handle had it accepted; False where its idempotency key was known."""
        return self._inner.new

    state = waiting(Run.state)
    overview = waiting(Run.overview)
    nodes = iterating(Run.nodes)
    attempts = iterating(Run.attempts)
    wait = waiting(Run.wait)
    look = waiting(Run.look)
    ending = waiting(Run.ending)
    events = iterating(Run.events)
    told = iterating(Run.told)
    cancel = waiting(Run.cancel)
    pause = waiting(Run.pause)
    resume = waiting(Run.resume)
    redrive = waiting(Run.redrive)
    answer = waiting(Run.answer)

    @overload
    def result(self, *, node: str | None = ..., timeout: Duration = ...) -> Any: ...
    @overload
    def result(self, model: type[T], *, node: str | None = ..., timeout: Duration = ...) -> T: ...
    def result(self, model: Any = Any, *, node: str | None = None, timeout: Duration = DEFAULT_TIMEOUT) -> Any:
        """The value of the workflow's last node, or of the one that is named, validated as `model`.

        Waits for the end of the workflow, or of that node alone. Ctrl-C ends the wait and nothing else.

        Raises: TaskFailed, TaskRejected, TaskCanceled, TaskExpired with the failure's facts; ResultTimeout.
        """
        return self._thread.run(self._inner.result(model, node=node, timeout=timeout))
