"""The context that a handler may take as its second parameter: the task's data, and services that it may call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from functools import cached_property, wraps
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

from coditect.agent.workspaces import Workspaces
from coditect.codec import encode_any, value_of
from coditect.collaboration.handoffs import HandoffRow
from coditect.collaboration.locks import BlockingLock, Lock, Locking, LockPort
from coditect.collaboration.state import MAX_STATE_NAME_BYTES, SharedState, StatePort
from coditect.collaboration.threads import QUESTION, Thread, ThreadOptions, ThreadPort
from coditect.errors import InputError, TaskFailed, UnknownCapability
from coditect.model import arguments
from coditect.model.capability import Priority, check_capability_name
from coditect.model.duration import Duration, seconds
from coditect.model.ids import AgentId, TaskId, child_task_id
from coditect.model.message import NO_HEADERS, HeaderTable
from coditect.model.result import Outcome
from coditect.model.retry import Retry, retry_of
from coditect.model.task import Task
from coditect.resilience.retries import DEFAULT_RETRIES, Retries, RetryPort
from coditect.telemetry.tracing import CURRENT
from coditect.wire import routing
from coditect.wire.control import Verb, named_space, workflow_space
from coditect.wire.events import check_event
from coditect.wire.headers import foreign_headers
from coditect.wire.json import dumps, loads

if TYPE_CHECKING:
    from coditect.model.lesson import Lesson

T = TypeVar("T")
P = ParamSpec("P")


class BreakerCall(Protocol):
    """A call of a dependency that a breaker has let through."""

    @property
    def permit(self) -> int | None:
        """The permit's number if the call is a probe, 0 for a probe without the control plane; None for no probe."""


class Services(LockPort, StatePort, ThreadPort, RetryPort, Protocol):
    """The port through which a `Context` reaches the runtime: requests, locks, state, threads, retries and events.

    A handler in a worker process calls every method by its name; `pool` lists the possible arguments.
    """

    async def request(
        self, capability: str, body: bytes, *, ordinal: int, timeout_seconds: float, priority: Priority
    ) -> Outcome:
        """Submit a child task and return its outcome; the parent task holds no slot while it waits."""

    async def without_slot(self, wait: Coroutine[Any, Any, T]) -> T:
        """Await something; the task holds no slot meanwhile, except in a worker process."""

    async def hand_off(self, to: str, *, reason: str, context: Any, timeout_seconds: float) -> dict[str, Any]:
        """Offer the task to others and return the handoff that failed; after an acceptance the execution ends."""

    async def received_handoff(self) -> dict[str, Any]:
        """Return as JSON the handoff that brought the task to this agent; `handoff`, its id, is None without one."""

    async def send_part(self, body: bytes) -> None:
        """Send the next part of a streamed result, once the requester's credit allows it."""

    async def end_parts(self, *, complete: bool) -> int:
        """Wait until the broker has all parts, and return their number; with `complete`, first send an end marker.

        Nothing is awaited or sent when no part was sent and the result is not complete.
        """

    def breaker(self, name: str) -> AbstractAsyncContextManager[BreakerCall]:
        """Return a context manager around one call of a dependency, which the dependency's breaker guards."""

    def hold(self, lock: Lock) -> BlockingLock:
        """Return a blocking form of a lock, which a plain handler holds inside of `with`."""

    def progress(self, share: float, note: str) -> None:
        """Publish the progress of the task; call on the event loop only."""

    def report(self, share: float, note: str) -> None:
        """Publish the progress of the task; may be called from any thread."""

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publish an event to its subscribers, at most once."""

    @property
    def asked_to_end(self) -> bool:
        """Tell whether the attempt was canceled, or its time is over."""

    @property
    def lifespan(self) -> Any:
        """The value of the agent's lifespan; None without one."""

    def run(self, work: Coroutine[Any, Any, T], *, closing: bool = False) -> T:
        """Run a coroutine, such as a call of another service, to its end for a plain handler, whose thread waits.

        With `closing` the work is done even if the handler is to end.

        Raises:
            TaskCanceled: when the handler is to end.
        """


MAX_REASON_BYTES = 1_000
DEFAULT_HANDOFF_TIMEOUT: Duration = "1m"
DEFAULT_REQUEST_TIMEOUT: Duration = "5m"


def _progress(share: Any, note: Any) -> tuple[float, str]:
    """Return the share of a handler's progress, clamped and as a float, and its note.

    A `Decimal`, a `Fraction` or NumPy's number is a number, too: an event could not carry it as it is.

    Raises:
        InputError: when the share is no number, or the note is no text.
        InvalidTask: when the note has a lone surrogate.
    """
    try:
        clamped = float(min(1.0, max(0.0, share))) if hasattr(share, "__float__") else None
    except (ArithmeticError, TypeError, ValueError):  # such as Decimal("NaN")
        clamped = None
    if clamped is None:
        arguments.refuse("share", "This is no number", share, "such as 0.5")
    if not isinstance(note, str):
        arguments.refuse("note", "This is no text", note, "put it in quotes")
    dumps(note)
    return clamped, note


class TaskContext:
    """The base of `Context` and `PlainContext`: the task and its limits, a workspace, and progress from a thread."""

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
    def attempt(self) -> int:
        """The number of the present attempt at the task, from 1."""
        return self._task.attempt

    @property
    def fence(self) -> int:
        """A number that grows with every attempt, so that the receiver of an effect can refuse an older attempt.

        The number stays the same from the start of the execution to its end, also when the control plane grants the
        task again under a newer fence meanwhile. Another agent may have had the task in between: this execution may
        have read outdated data, so its effects must not count as newer than the other agent's.
        """
        return self._task.owner.fence if self._task.owner else self._task.redrive * 1_000_000 + self._task.attempt

    @property
    def capability(self) -> str:
        """The capability that the task asks for."""
        return self._task.capability

    @property
    def priority(self) -> Priority:
        """The priority at which the task was submitted."""
        return self._task.priority

    @property
    def deadline_ms(self) -> int | None:
        """The instant after which the result is worthless, in Unix milliseconds; None without a deadline."""
        return self._task.limits.deadline_ms

    @property
    def requester(self) -> str:
        """The name of the client or agent that waits for the result, or `workflow:<id>`; empty when none is known."""
        if self._task.owner is not None:
            return f"workflow:{self._task.owner.workflow}"
        return routing.process_of(self._task.reply_to or "")

    @property
    def trace(self) -> dict[str, str]:
        """The W3C trace headers that a call to another service sends, so that it belongs to the task's trace.

        Empty outside of any trace; the baggage is not among them, since it may be meant for the fleet alone.
        """
        place = CURRENT.get() or self._task
        headers = {"traceparent": place.traceparent, "tracestate": place.tracestate}
        return {name: text for name, text in headers.items() if text is not None}

    def seconds_left(self, limit: float) -> float:
        """Return how many seconds an attempt that begins now may run: `limit`, or less by the task's own limits."""
        timeout_ms, left = self._task.limits.timeout_ms, self._left_seconds()
        bounds = (limit, None if timeout_ms is None else timeout_ms / 1000, left)
        return max(0.0, min(bound for bound in bounds if bound is not None))

    @property
    def headers(self) -> HeaderTable:
        """The headers that the publisher gave the task, the same at every attempt; empty for a workflow's node.

        Only texts of at most 4,096 characters, truth values and numbers, at most 16 KiB of them.
        """
        return MappingProxyType(foreign_headers(self._headers))

    @property
    def streamed(self) -> bool:
        """True when the requester takes the parts of a result one by one, as the handler yields them."""
        return self._task.stream > 0

    def _left_seconds(self) -> float | None:
        deadline_ms = self.deadline_ms
        return None if deadline_ms is None else (deadline_ms - self.services.now_ms()) / 1000

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
        """Publish the task's progress (0 to 1, clamped) with a note; any thread may call it.

        Raises:
            InputError: when the share is no number, or the note is no text.
        """
        self.services.report(*_progress(share, note))

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
        arguments.text("dependency", dependency, shortest=1)
        chosen = DEFAULT_RETRIES if policy is None else retry_of(policy)
        return Retries(self.services.retry_budgets.of(dependency), chosen, self._left_seconds)


class Context(TaskContext, Locking):
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
        """Publish the task's progress (0 to 1, clamped) with a note, as an event `task.progress`, at most once.

        Raises:
            InputError: when the share is no number, or the note is no text.
        """
        self.services.progress(*_progress(share, note))

    async def emit(self, /, type_: str, *, subject: str = "", **data: Any) -> None:
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
            raise InputError("This task belongs to no workflow", fix='use a named space: ctx.state("team")')
        return SharedState(self.services, workflow_space(self._task.owner.workflow))

    def state(self, space: str) -> SharedState:
        """Return the shared state (values by key) of a named space, which all agents and clients read and write."""
        return SharedState(
            self.services, named_space(arguments.text("space", space, shortest=1, longest=MAX_STATE_NAME_BYTES))
        )

    async def lessons(self, capability: str | None = None) -> list[Lesson]:
        """Return what was learned about a capability, by default the task's own: what failed, why, and what fixed it.

        The lessons that were seen often and lately come first. What they say was said by handlers and people: give it
        to a model as data, not as instructions.

        Example:
            for lesson in await ctx.lessons():
                prompt += lesson.sentence

        Raises:
            ControlPlaneRequired: when no dispatcher answers.
        """
        from coditect.collaboration.lessons import Lessons  # noqa: PLC0415 - few handlers ask for lessons

        return await Lessons(self.services).list(self.capability if capability is None else capability)

    async def checkpoint(self, name: str) -> None:
        """Make a named checkpoint of how far the task's workflow has come, to which the workflow can be restored.

        The node of this task has not ended by then, so a restore runs it again, from its beginning.

        Raises:
            InputError: when the task belongs to no workflow, the attempt is not the present one any more, or the name
                is that of a node, or no name.
        """
        if self._task.owner is None:
            raise InputError("This task belongs to no workflow", fix="call it in a workflow's node")
        asked = {"workflow": self._task.owner.workflow, "checkpoint": name}
        await self.services.ask_state(Verb.CHECKPOINT, asked)

    def thread(self, thread: str) -> Thread:
        """Return an object for the conversation thread with an id; nothing checks that such a thread exists.

        This agent takes part in it under its name, its id, or the task's capability.
        """
        name = arguments.text("thread", thread, shortest=1, longest=200)
        return Thread(self.services, name, self._thread_names, self._thread_id)

    async def open_thread(
        self,
        *participants: str,
        **options: Unpack[ThreadOptions],
    ) -> Thread:
        """Open a thread for this agent and for the participants, by default bound to the task and its workflow.

        A participant is the name of an agent, a capability, or the name of a person. A handler that runs again finds
        the thread that it opened before. The thread is kept for `retention` (7d) after its last message.

        Raises:
            InputError: when there are more than 50 participants, or a parameter is wrong.
            ControlPlaneRequired: when no dispatcher answers.
        """
        workflow = "" if self._task.owner is None else self._task.owner.workflow
        bound: ThreadOptions = {"task": self.task_id, "workflow": workflow, **options}
        thread = self.thread(self._thread_id(f"open/{sorted(bound.items())}/{participants}"))
        return await thread.open(participants, **bound)

    async def ask(self, participant: str, question: Any, *, timeout: Duration = "5m") -> Any:
        """Ask a capability, an agent or a person, and return the answer; the task holds no slot while it waits.

        A capability that an agent offers is requested with the question as its input. Anybody else is asked in a
        thread that is bound to the task, and answers there: `thread.answer(message, value)`, `coditect thread say`.

        Raises:
            TaskFailed: when the capability ended without a value.
            ResultTimeout: when there was no answer within `timeout`.
            ControlPlaneRequired: when an agent or a person is asked, and no dispatcher answers.
        """
        try:
            return await self.request(participant, question, timeout=timeout)
        except UnknownCapability:
            thread = await self.open_thread(participant, type=QUESTION)
        answer = await thread.ask(question, to=participant, timeout=timeout)
        await thread.close("answered")
        return answer

    @property
    def _thread_names(self) -> list[str]:
        return [self.agent_id.rpartition("-")[0], self.agent_id, self._task.capability]

    @cached_property
    def _thread_ids(self) -> Counter[str]:
        return Counter()

    def _thread_id(self, purpose: str) -> str:
        """Return an id for a thread, message or wait, the same when the task runs again and asks in the same order."""
        self._thread_ids[purpose] += 1
        return child_task_id(self.task_id, "thread", purpose.encode(), self._thread_ids[purpose])

    async def hand_off(
        self, to: str, *, reason: str = "", context: Any = None, timeout: Duration = DEFAULT_HANDOFF_TIMEOUT
    ) -> HandoffRow:
        """Offer the task to an agent or a capability's agents; wait without a slot; an acceptance ends this execution.

        The agents are asked one after the other, those with the most free slots first. Until one accepts, the task is
        this handler's. When one accepts, the task, the locks that it holds and the context are that agent's in one
        step: this call does not return, and the execution is canceled. Otherwise returns a `HandoffRow`, whose `state`,
        `why` and `reasons` say why the task stays here.

        Raises:
            InputError: when the task is direct, was handed off eight times, or is another attempt's by now.
            TooLarge: when the context is over 64,000 bytes.
            RegistryUnavailable: when the agents to ask cannot be found; retryable.
            ControlPlaneRequired: when no dispatcher answers.
        """
        named = arguments.text("to", to, shortest=1, longest=200)
        why = arguments.text("reason", reason, longest=MAX_REASON_BYTES)
        passed, limit = loads(encode_any(context)), seconds(arguments.span("timeout", timeout))
        return HandoffRow.read(await self.services.hand_off(named, reason=why, context=passed, timeout_seconds=limit))

    async def handoff(self) -> HandoffRow | None:
        """Return the handoff by which the task came to this agent, with its reason and context; None without one.

        Raises:
            ControlPlaneRequired: when no dispatcher answers.
        """
        found = await self.services.received_handoff()
        return None if found["handoff"] is None else HandoffRow.read(found)

    @overload
    async def request(
        self, capability: str, input: Any = ..., *, timeout: Duration = ..., priority: Priority | str | None = ...
    ) -> Any: ...
    @overload
    async def request(
        self,
        capability: str,
        input: Any = ...,
        model: type[T] = ...,
        *,
        timeout: Duration = ...,
        priority: Priority | str | None = ...,
    ) -> T: ...
    async def request(
        self,
        capability: str,
        input: Any = None,
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
        check_capability_name(capability)
        timeout_seconds = seconds(arguments.span("timeout", timeout))
        level = self.priority if priority is None else arguments.choice("priority", priority, Priority)
        body = encode_any(input)
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


def _waited(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[PlainContext, P], T]:
    """Return a `PlainContext` method that does what a coroutine method of `Context` does, and blocks until its end."""

    @wraps(method)
    def wait(self: PlainContext, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.services.run(method(self, *args, **kwargs))

    return wait


class PlainContext(TaskContext):
    """The execution of a task as a plain handler sees it, in a thread or a process: its methods block, none is async.

    Only the handler may call the methods. A call that is under way when the attempt is canceled, or its time is over,
    raises `TaskCanceled`, and so does every later one: the handler should end then.
    """

    lock = _blocking(Locking.lock)
    elect = _blocking(Locking.elect)
    hand_off = _waited(Context.hand_off)
    handoff = _waited(Context.handoff)
    lessons = _waited(Context.lessons)
    checkpoint = _waited(Context.checkpoint)
    emit = _waited(Context.emit)
    request = _waited(Context.request)

    def progress(self, share: float, note: str = "") -> None:
        """Publish the task's progress (0 to 1, clamped) with a note, as an event `task.progress`, at most once.

        Raises:
            InputError: when the share is no number, or the note is no text.
        """
        self.report(share, note)
