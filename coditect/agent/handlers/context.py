"""The context that a handler may take as its second parameter: the task's data, and services that it may call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, overload

from coditect.agent.handlers.facts import TaskFacts
from coditect.agent.handlers.handoffs import PlainHandoffs, TaskHandoffs
from coditect.agent.handlers.port import BreakerCall, Services
from coditect.agent.handlers.threads import TaskThreads
from coditect.agent.workspaces import Workspaces
from coditect.codec import encode_any, value_of
from coditect.collaboration.blocking_locks import BlockingLock
from coditect.collaboration.locks import Lock, Locking, LockPort
from coditect.collaboration.state import LONGEST_NAME_BYTES, SharedState
from coditect.errors import InputError, TaskFailed
from coditect.model import arguments
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import Duration, seconds
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import NO_HEADERS, HeaderTable
from coditect.model.retry import Retry, retry_of
from coditect.model.task import Task
from coditect.wire.control import Verb
from coditect.wire.events import check_event
from coditect.wire.json import dumps
from coditect.wire.state import named_space, workflow_space

if TYPE_CHECKING:
    from coditect.resilience.retries import Retries

T = TypeVar("T")
P = ParamSpec("P")

DEFAULT_REQUEST_TIMEOUT: Duration = "5m"


class TaskContext(TaskFacts):
    """The base of `Context` and `PlainContext`: the task's data, a workspace, and progress from a thread."""

    def __init__(
        self,
        task: Task,
        task_id: TaskId,
        agent_id: AgentId,
        services: Services,
        *,
        workspaces: Workspaces | None = None,
        headers: HeaderTable = NO_HEADERS,
        workspace: Path | None = None,
    ) -> None:
        self._task = task
        self._headers = headers
        self.services = services
        """The runtime's services for this execution."""
        self._workspaces = workspaces or Workspaces()
        self._workspace = workspace
        self._asked: Counter[tuple[str, int]] = Counter()
        """The number of equal requests made so far, by capability and hash of the input."""
        self.task_id = task_id
        """The id of the task, the same over all attempts: an idempotency key for effects."""
        self.agent_id = agent_id
        """The id of the agent process that runs this execution."""

    @property
    def lifespan(self) -> Any:
        """The value that the agent's lifespan yielded, or that of the worker process; None without a lifespan."""
        return self.services.lifespan

    @property
    def workspace(self) -> Path:
        """A temporary folder for the execution alone; created on first use and deleted when the attempt ends.

        Raises:
            SetupError: when it cannot be created, or another user could change it.
        """
        if self._workspace is None:
            self._workspace = self._workspaces.make()
        return self._workspace

    def remove_workspace(self) -> None:
        """Delete the workspace folder, if there is one; a later use of `workspace` creates a new folder."""
        if self._workspace is not None:
            self._workspaces.remove(self._workspace)
            self._workspace = None

    def report(self, share: float, note: str = "") -> None:
        """Publish the task's progress (0 to 1, clamped) with a note, from any thread, also that of a plain handler."""
        dumps(note)
        self.services.report(min(1.0, max(0.0, share)), note)

    def retry(self, dependency: str, policy: Retry | int | None = None) -> Retries:
        """Return the tries of one call to a dependency: `async for attempt in ctx.retry("github")`, `with attempt:`.

        The block runs again after an exception, at most three times in all, after pauses of up to 100 ms, 200 ms and so
        on, drawn at random; `policy` says otherwise. The last exception is raised. The block never runs again after the
        task's deadline, nor when the retries of this process would be over a tenth of its calls to the dependency (the
        first ten are free). Coditect's own errors are not retried: another layer does that. A plain handler writes
        `for` in place of `async for`.

        Raises:
            InputError: when a parameter is wrong; the error names the parameter.
        """
        from coditect.resilience.retries import DEFAULT_RETRIES, Retries  # noqa: PLC0415 - tenacity loads slowly

        arguments.text("dependency", dependency, shortest=1)
        chosen = DEFAULT_RETRIES if policy is None else retry_of(policy)
        return Retries(self.services.retry_budgets.of(dependency), chosen, self._left_seconds)

    async def _ask(
        self, capability: str, value: Any, model: Any, timeout: Duration, priority: Priority | str | None
    ) -> Any:
        """Submit a child task, await its outcome, and return its value; see `Context.request`."""
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
        return value_of(outcome, model)

    async def _checkpoint(self, name: str) -> None:
        """Make a named checkpoint of the task's workflow; see `Context.checkpoint`."""
        if self._task.owner is None:
            raise InputError("This task belongs to no workflow", fix="call it in a workflow's node")
        asked = {"workflow": self._task.owner.workflow, "checkpoint": name}
        await self.services.ask_state(Verb.CHECKPOINT, asked)


class Context(TaskContext, TaskThreads, TaskHandoffs, Locking):
    """The execution of a task as an async handler sees it; only the handler may call the methods."""

    def breaker(self, name: str) -> AbstractAsyncContextManager[BreakerCall]:
        """Return a context manager around one call of a dependency: `async with ctx.breaker("github"): ...`.

        Nothing is held during the call. While the breaker is open, the block raises BreakerOpen before it begins; a
        handler that lets the error pass hands its task back: the attempt does not count, and the capability's tasks
        wait until the breaker closes.

        Raises:
            BreakerOpen: at the beginning of the block, when the dependency has failed too often.
        """
        return self.services.breaker(arguments.text("name", name, shortest=1))

    async def progress(self, share: float, note: str = "") -> None:
        """Publish the task's progress (0 to 1, clamped) with a note, as an event `task.progress`, at most once."""
        dumps(note)
        self.services.progress(min(1.0, max(0.0, share)), note)

    async def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publish an event that the handler defines, at most once; the default subject is the task's id.

        Raises:
            InputError: when the type is empty or over 255 bytes, or the subject is no text, even without listeners.
            InvalidTask: when JSON cannot express the data, even without listeners.
        """
        check_event(type_, subject, data)
        self.services.emit(type_, subject=subject or self.task_id, **data)

    @property
    def _lock_port(self) -> LockPort:
        return self.services

    @property
    def shared(self) -> SharedState:
        """The shared state of the task's workflow, which all of its nodes read and write.

        Raises:
            InputError: when the task belongs to no workflow.
        """
        if self._task.owner is None:
            raise InputError("This task belongs to no workflow", fix='use a named space: ctx.space("team")')
        return SharedState(self.services, workflow_space(self._task.owner.workflow))

    def space(self, name: str) -> SharedState:
        """Return the shared state (values by key) of the given name, which all agents and clients read and write."""
        return SharedState(
            self.services, named_space(arguments.text("name", name, shortest=1, longest=LONGEST_NAME_BYTES))
        )

    async def checkpoint(self, name: str) -> None:
        """Make a named checkpoint of how far the task's workflow has come, to which the workflow can be restored.

        The node of this task has not ended by then, so a restore runs it again, from its beginning.

        Raises:
            InputError: when the task belongs to no workflow, the attempt is not the present one any more, or the name
                is that of a node, or no name.
        """
        await self._checkpoint(name)

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
        """Submit a task to any agent with a capability, and return its value; the asker holds no slot while it waits.

        The child's id follows from the request, so a task that runs again finds its children, in any order of the
        requests; two equal requests are two children. The child's priority is this task's own unless one is given, also
        as a text: `"p0"`.

        Raises:
            InputError: when a parameter is wrong; the error names the parameter, and nothing was sent.
            TaskFailed: when the child ended without a value; the error carries the child's failure.
            ResultTimeout: when the child gave no result within `timeout`.
            UnknownCapability: when no agent offers the capability.
        """
        return await self._ask(capability, value, model, timeout, priority)

    async def without_slot(self, wait: Coroutine[Any, Any, T]) -> T:
        """Await other agents' work without a slot (a worker process keeps its own), and return the work's value.

        Otherwise an agent whose handlers wait for its own capability can have all slots full of tasks that wait. At
        the bound of such waits (`CODITECT_MAX_SUSPENDED`) the wait does not begin: the task goes back to its queue, its
        attempt unchanged. A handler in a process of its own keeps its slot.
        """
        return await self.services.without_slot(wait)


class _Locks(Locking):
    """A helper that makes async locks for a plain handler; `_blocking` turns each of them into a blocking one."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @property
    def _lock_port(self) -> LockPort:
        return self._services


def _blocking(
    method: Callable[Concatenate[Locking, P], Lock],
) -> Callable[Concatenate[PlainContext, P], BlockingLock]:
    """Return a `PlainContext` method that makes the same lock as a method of `Locking`, but one for a plain `with`."""

    @wraps(method)
    def lock(self: PlainContext, /, *args: P.args, **kwargs: P.kwargs) -> BlockingLock:
        return self.services.hold(method(_Locks(self.services), *args, **kwargs))

    lock.__doc__ = (method.__doc__ or "").replace("async with", "with")
    return lock


class PlainContext(TaskContext, PlainHandoffs):
    """The execution of a task as a plain handler sees it, in a thread or a process: its methods block, none is async.

    Only the handler may call the methods. A call that is under way when the attempt is canceled, or its time is over,
    raises `TaskCanceled`, and so does every later one: the handler should end then.
    """

    lock = _blocking(Locking.lock)
    elect = _blocking(Locking.elect)

    def progress(self, share: float, note: str = "") -> None:
        """Publish the task's progress (0 to 1, clamped) with a note, as an event `task.progress`, at most once."""
        self.report(share, note)

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publish an event that the handler defines, at most once; the default subject is the task's id.

        Raises:
            InputError: when the type is empty or over 255 bytes, or the subject is no text, even without listeners.
            InvalidTask: when JSON cannot express the data, even without listeners.
        """
        check_event(type_, subject, data)
        self.services.run(self._emit(type_, subject, data))

    def checkpoint(self, name: str) -> None:
        """Make a named checkpoint of the task's workflow, for a later restore; block until the checkpoint is kept.

        The node of this task has not ended by then, so a restore runs it again, from its beginning.

        Raises:
            InputError: when the task belongs to no workflow, the attempt is not the present one any more, or the name
                is that of a node, or no name.
        """
        self.services.run(self._checkpoint(name))

    async def _emit(self, type_: str, subject: str, data: dict[str, Any]) -> None:
        self.services.emit(type_, subject=subject or self.task_id, **data)

    @overload
    def request(
        self, capability: str, value: Any = ..., *, timeout: Duration = ..., priority: Priority | str | None = ...
    ) -> Any: ...
    @overload
    def request(
        self,
        capability: str,
        value: Any = ...,
        model: type[T] = ...,
        *,
        timeout: Duration = ...,
        priority: Priority | str | None = ...,
    ) -> T: ...
    def request(
        self,
        capability: str,
        value: Any = None,
        model: Any = Any,
        *,
        timeout: Duration = DEFAULT_REQUEST_TIMEOUT,
        priority: Priority | str | None = None,
    ) -> Any:
        """Submit a task to any agent with a capability, and wait for its value; meanwhile hold no slot, but a thread.

        The child's id follows from the request, so a task that runs again finds its children, in any order of the
        requests; two equal requests are two children. The child's priority is this task's own unless one is given, also
        as a text: `"p0"`.

        Raises:
            InputError: when a parameter is wrong; the error names the parameter, and nothing was sent.
            TaskFailed: when the child ended without a value; the error carries the child's failure.
            ResultTimeout: when the child gave no result within `timeout`.
            UnknownCapability: when no agent offers the capability.
            TaskCanceled: when the asking task was canceled, or its time is over.
        """
        return self.services.run(self._ask(capability, value, model, timeout, priority))
