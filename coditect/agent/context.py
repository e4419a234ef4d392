"""What a handler may ask for while it runs."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from coditect.codec import codec, encode_any
from coditect.errors import TaskFailed
from coditect.model import arguments
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import Duration, seconds
from coditect.model.ids import AgentId, TaskId
from coditect.model.result import Outcome
from coditect.model.task import Task

T = TypeVar("T")

DEFAULT_REQUEST_TIMEOUT: Duration = "5m"


class Services(Protocol):
    """What the runtime does for a handler."""

    async def request(
        self, capability: str, body: bytes, *, ordinal: int, timeout_seconds: float, priority: Priority
    ) -> Outcome:
        """Submits a child task and waits for its outcome without a slot."""

    def progress(self, share: float, note: str) -> None:
        """Publishes progress; on the event loop only."""

    def report(self, share: float, note: str) -> None:
        """Publishes progress; from any thread."""

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publishes an event."""


class Context:
    """One execution of one task, as its handler sees it. Every method may be called from the handler only."""

    def __init__(
        self, task: Task, task_id: TaskId, agent_id: AgentId, services: Services, *, folder: str | None = None
    ) -> None:
        self._task = task
        self.services = services
        """What the runtime does for this execution."""
        self._folder = folder
        self._workspace: Path | None = None
        self._asked: Counter[tuple[str, int]] = Counter()
        """How often it made each request: by capability and hash of the input."""
        self.task_id = task_id
        """The same over all attempts: an idempotency key for effects."""
        self.agent_id = agent_id
        """Which agent process this is."""

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._task.attempt

    @property
    def fence(self) -> int:
        """Grows with every attempt: lets an effect's receiver refuse an older one.

        It is the one that the execution began with, to its end, also when the control plane grants it anew on the
        way. Somebody else may have had the task in between: what this execution has read may be outdated since, so
        its effects may not count as newer than theirs.
        """
        return self._task.owner.fence if self._task.owner else self._task.redrive * 1_000_000 + self._task.attempt

    @property
    def capability(self) -> str:
        """The capability that was asked for."""
        return self._task.capability

    @property
    def priority(self) -> Priority:
        """How urgent it is."""
        return self._task.priority

    @property
    def deadline_ms(self) -> int | None:
        """After it nobody wants the result, in milliseconds since the epoch."""
        return self._task.limits.deadline_ms

    @property
    def workspace(self) -> Path:
        """A folder of this execution's own; made when it is asked for, gone with the task."""
        if self._workspace is None:
            self._workspace = Path(tempfile.mkdtemp(prefix="coditect-", dir=self._folder))
        return self._workspace

    def remove_workspace(self) -> None:
        """Deletes the folder, if there is one."""
        if self._workspace is not None:
            shutil.rmtree(self._workspace, ignore_errors=True)
            self._workspace = None

    async def progress(self, share: float, note: str = "") -> None:
        """Tells how far it is (0 to 1) and what it does; an event `task.progress`, at most once."""
        self.services.progress(min(1.0, max(0.0, share)), note)

    def report(self, share: float, note: str = "") -> None:
        """`progress` for a plain handler, which cannot await."""
        self.services.report(min(1.0, max(0.0, share)), note)

    async def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publishes an event of the handler's own, at most once."""
        self.services.emit(type_, subject=subject or self.task_id, **data)

    @overload
    async def request(
        self, capability: str, value: Any = ..., *, timeout: Duration = ..., priority: Priority | str | None = ...
    ) -> Any: ...
    @overload
    async def request(
        self,
        capability: str,
        value: Any = ...,
        model: type[T] = ...,
        *,
        timeout: Duration = ...,
        priority: Priority | str | None = ...,
    ) -> T: ...
    async def request(
        self,
        capability: str,
        value: Any = None,
        model: Any = Any,
        *,
        timeout: Duration = DEFAULT_REQUEST_TIMEOUT,
        priority: Priority | str | None = None,
    ) -> Any:
        """Asks another agent and waits without a slot.

        The child's id follows from what is asked, so a task that runs again finds its children, in whatever order it
        asks; the same asked twice is two children. The child's priority is this task's own unless one is given, also
        as a text: `"p0"`.

        Raises: InputError that names the parameter, before anything is sent; TaskFailed (or its kin) with the child's
        failure; ResultTimeout; UnknownCapability.
        """
        check_capability_name(capability)
        timeout_seconds = seconds(arguments.span("timeout", timeout))
        level = self.priority if priority is None else arguments.choice("priority", priority, Priority)
        body = encode_any(value)
        self._asked[capability, hash(body)] += 1
        outcome = await self.services.request(
            capability,
            body,
            ordinal=self._asked[capability, hash(body)],
            timeout_seconds=timeout_seconds,
            priority=level,
        )
        if outcome.failure is not None:
            raise TaskFailed(
                "A requested task ended without a value",
                capability=capability,
                reason=outcome.failure.reason,
                message=outcome.failure.message,
                task_id=outcome.task_id,
            )
        return codec(model).decode(outcome.body)
