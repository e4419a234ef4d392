"""The run of a handler within its limits: on the event loop, in a thread, or in a process that a timeout kills."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from coditect.agent.batch import Batches, awaited_call
from coditect.agent.context import TaskContext
from coditect.agent.declaration import Agent, Capability, Where
from coditect.agent.execution import RUNNING, Execution, Interruption, TimeLimits
from coditect.agent.pool import PROCESS_DIED, ProcessDied, RemoteError, Worker, Workers
from coditect.agent.signature import MiddlewareContext, chained
from coditect.aio.supervisor import cancellations
from coditect.aio.threads import carry, in_thread
from coditect.blobs import Blobs, whole
from coditect.codec import LARGE_BYTES
from coditect.errors import BlobUnavailable, ClaimBroken, CoditectError, InvalidTask, SetupError, TooLarge
from coditect.model.capability import LONGEST_DIRECT_SECONDS
from coditect.model.ids import AgentId
from coditect.model.message import value
from coditect.model.result import RETRY_AFTER, Failure, Status, first_in, original_error
from coditect.model.retry import RetryAfter
from coditect.model.task import NO_LIMITS, Task
from coditect.registry.port import ReferenceClock
from coditect.telemetry.tracing import CURRENT, Span, Tracing, begin_process

T = TypeVar("T")

MOST_MS = round(LONGEST_DIRECT_SECONDS * 1000)
KEEP_IT = (
    "submit(..., durable=True), or `coditect task submit --detach`; or give the task a timeout or deadline of its own"
    " of at most 25m"
)


_AGENT = str(Path(__file__).parent)
_ASYNCIO = str(Path(asyncio.__file__).parent)

NO_WORKFLOW = "A workflow passes JSON on, and this capability takes or returns bytes"
SUBMIT_IT = "submit it as a direct task, and pass on a reference to where the bytes lie"


class SentBack(BaseException):
    """The signal that a task goes back to its queue, from which it will run later under the same attempt number.

    The signal is no `Exception`, so that handlers let it pass.
    """


class HandedBack(SentBack):
    """The signal that a task goes back and its attempt does not count, such as when a breaker is open.

    A used-up rate, a taken concurrency key or a missing HTTP connection has the same effect.
    """


class Abandoned(BaseException):
    """The signal that a handler has ended after its attempt was settled without it, so that its end is ignored."""


@value
class AttemptOutcome:
    """The end of one attempt, a value or a failure, before the choice of result, retry or dead letter."""

    status: Status
    body: bytes = b""
    failure: Failure | None = None
    """Why the attempt has no value; None exactly when it completed, which is cheaper to ask than the status."""
    error: BaseException | None = None
    """The exception of the attempt, by which the retry policy allows another attempt or not."""
    claims: bool = False
    """Whether the value was over the inline limit and stored as a blob, so that the body is its blob reference."""
    binary: bool = False
    """Whether the value is bytes, and not JSON."""


@dataclass(frozen=True, slots=True)
class Executors:
    """The executors of an agent process's handlers: event loop, threads and worker processes, with time limits."""

    loop: asyncio.AbstractEventLoop
    limits: TimeLimits
    threads: Executor
    workers: Workers
    alone: Worker | None = None
    """The worker process of this one execution, used instead of the executor that the capability declares."""
    ending: Callable[[], bool] = bool
    """A function that tells whether the process drains or ends, so that it cancels handlers by itself."""


async def run_handler(
    capability: Capability, execution: Execution, context: TaskContext | None, executors: Executors
) -> AttemptOutcome:
    """Run one attempt of a handler within `execution.limit_seconds`, and return how the attempt ended.

    A cancellation of the process itself and `SentBack` pass through; everything else that a handler can do becomes an
    `AttemptOutcome`. A plain handler's thread is left in `execution.thread`: neither a timeout nor a cancellation stops
    the thread.
    """
    execution.enter(RUNNING)
    executors.limits.start(execution, execution.limit_seconds)
    try:
        if capability.middleware is None and (capability.where is not Where.LOOP or executors.alone is not None):
            body = await _elsewhere(capability, execution, context, executors)
        else:
            large = len(execution.task.body) > LARGE_BYTES
            value = await in_thread(partial(_input, capability, execution)) if large else _input(capability, execution)
            if capability.middleware is not None:
                value = await _through_middleware(capability, execution, context, value, executors)
            elif capability.signature.wants_context:
                value = await capability.handler(value, context)
            else:
                value = await capability.handler(value)
            body = capability.signature.output.encode(value)
    except BaseException as error:  # noqa: BLE001 - the delivery's boundary: even sys.exit() is only a failure
        return _ended_by(error, execution, executors)
    finally:
        executors.limits.stop(execution)
        if execution.leave():
            _go_on()
        elif execution.work is not None and execution.work.cancelling() and not executors.ending():
            await _end_own_cancellation(execution.work)
    return AttemptOutcome(Status.COMPLETED, body, binary=capability.binary and capability.signature.output.binary)


def _ended_by(error: BaseException, execution: Execution, executors: Executors) -> AttemptOutcome:
    """Return how an attempt ended by an exception.

    Raises:
        SentBack: when the exception is one, or a group with one, or is the fault of the agent, which ends.
        BaseException: the given exception, when it is a cancellation by the process itself.
    """
    kind = type(error)
    if issubclass(kind, asyncio.CancelledError):
        return cut_short(execution, cast("asyncio.CancelledError", error), executors.ending)
    if issubclass(kind, _BadInput):
        return unfit(cast("_BadInput", error).cause)
    if issubclass(kind, GeneratorExit) and asyncio.current_task(executors.loop) is not execution.work:
        raise error  # it ends a coroutine that no asyncio task runs any more
    if issubclass(kind, SentBack):
        raise error
    if first_in(error, SentBack) is not None or (issubclass(kind, SetupError) and executors.ending()):
        raise SentBack from error  # the agent goes, and has closed what the handler waited for
    return _failed(error, "handler_error")


def limit_seconds(capability: Capability, task: Task, now_ms: int) -> float:
    """Return the seconds that an attempt may run: the least of the capability's and the task's limits, at least 0."""
    seconds, limits = capability.spec.timeout_seconds, task.limits
    if limits is NO_LIMITS:
        return seconds
    if limits.timeout_ms is not None:
        seconds = min(limits.timeout_ms / 1000, seconds)
    if limits.deadline_ms is not None:
        seconds = min(seconds, (limits.deadline_ms - now_ms) / 1000)
    return max(0.0, seconds)


def unstartable(
    task: Task, clock: ReferenceClock, *, long: bool = False, canceled: str | None = None
) -> AttemptOutcome | None:
    """Return the rejection or cancellation of a task that must not start; None when the task may start.

    A task must not start after its deadline or its start-by instant, nor when it was `canceled`, for the given reason.
    A `long` capability refuses a task without an owner, unless the task's own timeout or deadline is within 25 minutes.
    """
    now_ms = clock.now_ms()
    if long and task.owner is None and (refused := _unkept(task, now_ms)) is not None:
        return refused
    for bound, name in ((task.limits.deadline_ms, "deadline"), (task.limits.start_by_ms, "start-by")):
        if bound is not None and bound <= now_ms:
            message = f"The task's {name} passed {now_ms - bound} ms before it started"
            if task.published_at_ms is not None:
                age_seconds = (now_ms - task.published_at_ms) / 1000
                message += f", {age_seconds:.1f} s after its publication by its sender's clock"
            if clock.doubt:
                message += f"; {clock.doubt}"
            return AttemptOutcome(Status.REJECTED, failure=Failure("expired", "TaskExpired", message))
    if canceled is not None:
        return _canceled(canceled or "canceled on request")
    return None


def _unkept(task: Task, now_ms: int) -> AttemptOutcome | None:
    """Return the rejection of a direct task without a timeout or deadline within 25 min; None for one that has it.

    It is asked about tasks of capabilities that may run for over 10 minutes: the control plane has to keep these.
    """
    limits = task.limits
    bounds = (limits.timeout_ms, None if limits.deadline_ms is None else limits.deadline_ms - now_ms)
    if min((bound for bound in bounds if bound is not None), default=MOST_MS + 1) <= MOST_MS:
        return None
    message = "This capability may run for more than 10 minutes: its tasks are kept by the control plane"
    return AttemptOutcome(Status.REJECTED, failure=Failure("not_durable", "ControlPlaneRequired", message, fix=KEEP_IT))


def cut_short(execution: Execution, error: asyncio.CancelledError, ending: Callable[[], bool]) -> AttemptOutcome:
    """Return how an attempt ended after a CancelledError: canceled, timed out, or failed by the handler itself.

    Raises:
        CancelledError: the given error, when the process itself is to end.
    """
    why, canceled = execution.interruption, cancellations() > 0
    if why is None and canceled and ending():
        raise error
    if why is None or not canceled:  # the handler raised it, or canceled its own asyncio task
        return _failed(error, "handler_error")
    _go_on()
    return _timed_out(why, execution.limit_seconds) if why.canceled is None else _canceled(why.canceled)


def _canceled(reason: str) -> AttemptOutcome:
    return AttemptOutcome(Status.CANCELED, failure=Failure("canceled", "TaskCanceled", reason))


def _go_on() -> None:
    """Undo the cancellation of the current asyncio task, so that the task can go on after its handler."""
    current = asyncio.current_task()
    if current is not None and current.cancelling():
        current.uncancel()


async def _end_own_cancellation(work: asyncio.Task[Any]) -> None:
    """Let the cancellation arrive by which a handler canceled its own asyncio task, and go on after it."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while work.cancelling():
        work.uncancel()


class _BadInput(Exception):
    """The error of a task's input that does not fit the handler's type, unlike an InvalidTask from the handler."""

    def __init__(self, cause: InvalidTask) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _input(capability: Capability, execution: Execution) -> Any:
    """Return the task's decoded input, after a check that no workflow task is given to a capability with bytes.

    Raises:
        _BadInput: when the input does not fit the handler's type.
    """
    if capability.binary:
        _check_owner(execution.task)
    try:
        return capability.signature.input.decode(execution.task.body)
    except InvalidTask as error:
        raise _BadInput(error) from error


def _check_owner(task: Task) -> None:
    if task.owner is not None:
        raise _BadInput(InvalidTask(NO_WORKFLOW, fix=SUBMIT_IT))


def _called(capability: Capability, execution: Execution, context: TaskContext | None) -> bytes:
    """Decode the task's input, call a handler that is not async, and return the encoded value.

    Raises:
        _BadInput: when the input does not fit the handler's type.
        Exception: any error that the handler raises.
    """
    value, shape = _input(capability, execution), capability.signature
    return shape.output.encode(capability.handler(value, context) if shape.wants_context else capability.handler(value))


async def _through_middleware(
    capability: Capability, execution: Execution, context: TaskContext | None, value: Any, executors: Executors
) -> Any:
    """Pass the task's decoded input through the agent's middleware to the handler, and return the handler's value."""
    chain, shape = capability.middleware, capability.signature
    assert chain is not None and context is not None, "middleware is given the task's context"
    elsewhere = executors.alone is not None or capability.where is Where.PROCESS

    async def handle(value: Any) -> Any:
        execution.parts = None  # middleware that calls again begins another stream
        if elsewhere:
            task = replace(execution.task, body=shape.input.encode(value))
            return shape.output.decode(await _in_process(capability, task, context, executors))
        call = partial(capability.handler, *((value, context) if shape.wants_context else (value,)))
        return await (call() if capability.where is Where.LOOP else _in_thread(call, execution, executors))

    return await chain(MiddlewareContext(context, value, handle))


async def _elsewhere(
    capability: Capability, execution: Execution, context: TaskContext | None, executors: Executors
) -> bytes:
    """Run the handler in a worker process or a thread, and return its encoded value."""
    if capability.where is Where.THREAD and executors.alone is None:
        return await _in_thread(partial(_called, capability, execution, context), execution, executors)
    assert context is not None, "a process is given the task's context"
    return await _in_process(capability, execution.task, context, executors)


async def _in_thread(call: Callable[[], T], execution: Execution, executors: Executors) -> T:
    """Run a call in a thread, in a copy of the `contextvars` context, so that no later task sees what this one sets."""
    thread = executors.loop.run_in_executor(executors.threads, copy_context().run, carry, call)
    execution.thread = thread
    try:
        carried = await asyncio.shield(thread)
    except asyncio.CancelledError:
        execution.stop_calls()
        raise
    return carried.result()


async def _in_process(capability: Capability, task: Task, context: TaskContext, executors: Executors) -> bytes:
    """Run the handler in a worker process, and return its encoded value."""
    if capability.binary:
        _check_owner(task)
    try:
        if executors.alone is not None:
            return await executors.alone.call(task, context)
        return await executors.workers.run(capability, task, context)
    except InvalidTask as error:
        raise _BadInput(error) from error


def _failed(error: BaseException, reason: str) -> AttemptOutcome:
    error = original_error(error)
    if asked_seconds(error) is not None:
        reason = RETRY_AFTER
    elif issubclass(type(error), ProcessDied):
        reason = PROCESS_DIED
    failure = Failure.from_error(error, reason, caller=__file__)
    if issubclass(type(error), RemoteError):
        remote = cast("RemoteError", error)
        trace = remote.remote_traceback or failure.traceback
        failure = replace(failure, type=remote.remote_type, traceback=trace, fix=remote.remote_fix)
    return AttemptOutcome(Status.FAILED, failure=failure, error=error)


def asked_seconds(error: BaseException | None) -> float | None:
    """Return the delay in seconds that a handler, also in a worker process, asked for by `RetryAfter`; else None."""
    if error is None or not issubclass(type(error), RetryAfter | RemoteError):
        return None
    return cast("RetryAfter | RemoteError", error).delay_seconds


def overrun(capability: Capability, execution: Execution) -> AttemptOutcome:
    """Return how an attempt ended whose handler swallows its cancellation; the failure names it and where it stands."""
    why = execution.interruption
    assert why is not None, "only a handler that was asked to end is abandoned"
    if why.canceled is not None:
        return _canceled(why.canceled)
    ended = _timed_out(why, execution.limit_seconds)
    stack = _stack(awaited_call(execution.work) or execution.coroutine)
    assert ended.failure is not None
    name = getattr(capability.handler, "__qualname__", capability.name)
    place = f"{stack[-1].filename}:{stack[-1].lineno} in {stack[-1].name}" if stack else name
    failure = replace(
        ended.failure,
        message=f"{ended.failure.message}, and {name} does not end when it is canceled: it stands at {place}",
        traceback="".join(["Traceback (most recent call last):\n", *stack.format()]),
        fix="let CancelledError pass: catch Exception instead of BaseException, or raise it again after the cleanup",
    )
    return replace(ended, failure=failure)


def _stack(work: Any) -> traceback.StackSummary:
    """Return the frames of a suspended coroutine and of what it awaits, outermost first, from the handler's on."""
    frames = []
    while (frame := getattr(work, "cr_frame", None) or getattr(work, "gi_frame", None)) is not None:
        if not frame.f_code.co_filename.startswith(_AGENT) and not frame.f_code.co_filename.startswith(_ASYNCIO):
            frames.append((frame, frame.f_lineno))
        work = getattr(work, "cr_await", None) or getattr(work, "gi_yieldfrom", None)
    return traceback.StackSummary.extract(iter(frames))


def _timed_out(why: Interruption, limit_seconds: float) -> AttemptOutcome:
    if why.by_clock:
        message = "The task did not end by its deadline, or within what a task may last, its waits included"
    else:
        message = f"The handler did not end within its time ({limit_seconds:g} s)"
    error = TimeoutError(message)
    failure = Failure("timeout", "TimeoutError", message, retryable=True)
    return AttemptOutcome(Status.FAILED, failure=failure, error=error)


def runnable(agent: Agent, startable: int) -> tuple[dict[str, Capability], list[Batches]]:
    """Return an agent's capabilities by name, each with the agent's middleware, and the batches of its list handlers.

    A handler of lists is replaced by a handler that adds its task to a batch. A batch is at most as large as the number
    of tasks that are `startable` at once, since the slots of a process are a setting.
    """
    chain = chained(agent.middleware_stack)
    capabilities = {capability.name: replace(capability, middleware=chain) for capability in agent.capabilities}
    all_batches = []
    for name, capability in capabilities.items():
        if capability.batch is not None and capability.batch_handler is not None:
            policy = replace(capability.batch, size=min(capability.batch.size, startable))
            batches = Batches(capability.batch_handler, policy)
            all_batches.append(batches)
            handle = update_wrapper(partial(batches.handle), capability.handler)  # by which its file is found
            capabilities[name] = replace(capability, handler=handle)
    return capabilities, all_batches


def unfit(error: InvalidTask) -> AttemptOutcome:
    """Return the rejection of a task whose input does not fit its capability."""
    fix = "publish a body that fits the input's schema, which `coditect capability get` has with an example"
    return AttemptOutcome(Status.REJECTED, failure=failure_of(error, "invalid_input", fix=fix), error=error)


async def tidied(context: TaskContext, handling: Awaitable[AttemptOutcome]) -> AttemptOutcome:
    """Await the run of an attempt, and delete the attempt's workspace folder afterwards."""
    try:
        return await handling
    finally:
        context.remove_workspace()


async def fetch_input(blobs: Blobs, execution: Execution) -> AttemptOutcome | None:
    """Fetch a task's large input from the blob store into its body; return None, or the attempt's end on a failure."""
    try:
        execution.task = replace(execution.task, body=await whole(blobs, execution.task.body))
    except (TooLarge, ClaimBroken) as error:
        reason = "too_large" if isinstance(error, TooLarge) else "claim_broken"
        return AttemptOutcome(Status.REJECTED, failure=failure_of(error, reason), error=error)
    except BlobUnavailable as error:
        return _blob_failed("blob_unavailable", error)
    return None


async def put_value(blobs: Blobs, ended: AttemptOutcome) -> AttemptOutcome:
    """Store a handler's large value as a blob; return the attempt's end with the blob reference, or a failed end."""
    try:
        claim = await blobs.put(ended.body)
    except TooLarge as error:
        return _blob_failed("result_too_large", error)
    except BlobUnavailable as error:
        return _blob_failed("blob_unavailable", error)
    return AttemptOutcome(ended.status, claim.document, claims=True, binary=ended.binary)


def _blob_failed(reason: str, error: CoditectError) -> AttemptOutcome:
    return AttemptOutcome(Status.FAILED, failure=failure_of(error, reason), error=error)


def failure_of(error: CoditectError, reason: str, *, fix: str = "") -> Failure:
    """Return the failure of a task that an error of the runtime ends; `fix` is for an error that names none."""
    fix = str(error.facts.get("fix", fix))
    return Failure(reason, type(error).__name__, str(error), retryable=error.retryable, fix=fix)


class Handling(Protocol):
    """A function that runs one attempt of a task, and returns how the attempt ended.

    The attempt begins at `now_ms`; `passed` says that breaker, rate and concurrency limit allow it already.
    """

    def __call__(self, execution: Execution, now_ms: int, *, passed: bool = False) -> Awaitable[AttemptOutcome]:
        """Call the handler, and return how the attempt ended."""


def traced(tracing: Tracing, handle: Handling, agent_id: AgentId, capabilities: Mapping[str, Capability]) -> Handling:
    """Return a function that runs attempts by `handle` inside tracing spans; `handle` itself when tracing is off."""

    def handle_traced(execution: Execution, now_ms: int, *, passed: bool = False) -> Awaitable[AttemptOutcome]:
        """Run an attempt; its span, if it is traced, begins once breaker, rate and concurrency limit allow the call."""
        if not passed and capabilities[execution.task.capability].guarded:
            return handle(execution, now_ms)
        delivery = execution.delivery
        span = execution.span = begin_process(
            tracing,
            execution.task,
            agent=agent_id,
            origin=(delivery.exchange, delivery.routing_key, delivery.queue),
            redelivered=delivery.redelivered,
        )
        if span is None or (not span.sampled and tracing.alone):
            CURRENT.set(span)  # for log lines; the execution's context ends with it
            return handle(execution, now_ms, passed=passed)
        return _in_span(tracing, span, handle(execution, now_ms, passed=passed))

    return handle_traced if tracing.active else handle


async def _in_span(tracing: Tracing, span: Span, handling: Awaitable[AttemptOutcome]) -> AttemptOutcome:
    try:
        with tracing.current(span):
            ended = await handling
    except SentBack:
        span.add({"coditect.sent_back": True})
        span.end()
        raise
    except BaseException as error:
        span.end(type(error).__name__)
        raise
    if ended.status is not Status.COMPLETED:
        span.add({"coditect.status": ended.status.value})
    failure = ended.failure
    if failure is None or ended.status is Status.CANCELED:
        span.end()
    else:
        span.end(failure.type or failure.reason, failure.message)
    return ended
