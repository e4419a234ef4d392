"""One execution as a state machine with a time limit; the outcomes of ended executions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from concurrent import futures
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from types import coroutine
from typing import Any

from coditect.broker.port import Delivery
from coditect.errors import NotFound, Unroutable
from coditect.messaging.rpc import Requests
from coditect.model.ids import AgentId
from coditect.model.result import Outcome
from coditect.model.task import MOST_AHEAD, ExecutionKey, Task
from coditect.telemetry.tracing import Span
from coditect.wire.control_messages import Cancel
from coditect.wire.routing import Address
from coditect.wire.tasks import MAX_BODY_BYTES, Credit, Part, part_message

OUTCOME_SECONDS = 600.0
MAX_OUTCOMES = 10_000
MAX_OUTCOME_BYTES = 16 * 1024 * 1024
"""With `MAX_OUTCOMES`, the bounds of the outcomes; the older half goes when the newer is at half of either."""
TIME_LIMIT_CHECK_SECONDS = 0.1
"""Pause between two checks for executions that need a timer; a time limit that is shorter gets its timer at once."""


class ExecutionState(IntEnum):
    """The state of a task's execution in an agent, from the accepted delivery to the confirm of the last reply."""

    ACCEPTED = auto()
    """The task has, or waits for, all that its handler needs: a grant, a slot, a process, its input."""
    LOADING = auto()
    """A process that serves only this execution loads the handler, or the task awaits the lock of its key."""
    RUNNING = auto()
    INTERRUPTED = auto()
    """The handler was asked to end, and has not ended yet."""
    HANDLED = auto()
    """The handler has ended, or will not run, and the task still holds its slot."""
    SETTLING = auto()
    """The agent publishes the result, retry or dead letter; the slot is free now, or later by itself."""
    POSTED = auto()
    """The reply is on its way to the broker, and no asyncio task waits for the confirm."""
    ANSWERING = auto()
    """Another asyncio task repeats a reply whose publish failed, or sends the replies to redeliveries."""
    ENDED = auto()
    """The deliveries were settled, given back or joined to another execution."""


ACCEPTED, LOADING, RUNNING, INTERRUPTED, HANDLED, SETTLING, POSTED, ANSWERING, ENDED = ExecutionState
"""The states by names of this module: on Python 3.11 a look-up in the class takes 0.1 µs."""
HANDLING = (LOADING, RUNNING, INTERRUPTED)
"""The states in which a cancellation reaches the handler, or the process that loads the handler."""
LEFT_BEHIND = (POSTED, ANSWERING, ENDED)
"""The states in which the execution no longer needs the asyncio task that ran the handler."""
_PRECEDING = {
    LOADING: (ACCEPTED,),
    RUNNING: (ACCEPTED,),
    SETTLING: (ACCEPTED, HANDLED),
    POSTED: (SETTLING,),
    ANSWERING: (POSTED,),
    ENDED: (ACCEPTED, HANDLED, SETTLING, POSTED, ANSWERING),
}
"""The states from which `Execution.enter` may enter a state."""


class ForbiddenTransition(AssertionError):
    """The error of a state change that the diagram of `Execution` does not allow: a bug of the runtime."""


@dataclass(frozen=True, slots=True)
class Interruption:
    """The reason why a handler was asked to end: a cancellation, or the end of its time."""

    canceled: str | None = None
    """The reason of the cancel request; None when the time of the handler is over."""
    handed_off: bool = False
    """Whether another agent has accepted the task, which is no failure."""
    by_clock: bool = False
    """Whether the task exceeded its deadline or its longest total time, in which its waits count."""


TIME_OVER = Interruption()
OVER_BY_CLOCK = Interruption(by_clock=True)


class Suspicion(Enum):
    """The evidence that a task kills its process: none, many deliveries, or a process that ended while running it."""

    NONE = auto()
    COUNTED = auto()
    """The task was delivered many times, and the registry, which could say more, does not answer."""
    RECORDED = auto()
    """By the registry or the task's history, a process ended while it ran the task."""


@dataclass(eq=False, slots=True)
class Execution:
    """A task that an agent process runs, with the redeliveries of the task that share the outcome.

    Only the methods below change the state, those without a name by `enter`. `cancel` and `expire` come from outside
    and have no effect in other states than these; every other transition that is not drawn raises
    `ForbiddenTransition` and changes nothing::

        stateDiagram-v2
            [*] --> ACCEPTED
            ACCEPTED --> LOADING
            ACCEPTED --> RUNNING
            LOADING --> ACCEPTED: leave
            LOADING --> INTERRUPTED: cancel, expire
            RUNNING --> INTERRUPTED: cancel, expire
            INTERRUPTED --> INTERRUPTED: cancel, expire
            RUNNING --> HANDLED: leave
            INTERRUPTED --> HANDLED: leave, abandon
            ACCEPTED --> SETTLING
            HANDLED --> SETTLING
            SETTLING --> POSTED
            POSTED --> ANSWERING
            ACCEPTED --> ENDED
            HANDLED --> ENDED
            SETTLING --> ENDED
            POSTED --> ENDED
            ANSWERING --> ENDED
            ENDED --> [*]

    An end without settling is an error, a task that goes back, or a delivery that joined another execution.
    """

    task: Task
    delivery: Delivery
    key: ExecutionKey | None
    """The key that all deliveries of the execution share (`Task.execution_key`); None for a task without an id."""
    queue: str = ""
    """The name of the queue that the delivery came from, kept because `delivery.queue` costs two calls each time."""
    since: float = 0.0
    """The event loop's time of the arrival, in seconds."""
    picked: bool = False
    """Whether the sender picked this agent for the task."""
    slot: bool = False
    """Whether the task holds a slot."""
    awaiting: int = 0
    """The number of other tasks that the task awaits now; a task that awaits others has no slot."""
    over: bool = False
    """Whether the task's handler has ended."""
    state: ExecutionState = ACCEPTED
    interruption: Interruption | None = None
    """The reason why the handler was asked to end; a cancel request replaces the end of the handler's time."""
    attached: list[tuple[Task, Delivery]] | None = None
    """The task's redeliveries, which wait for the execution's outcome; None when there is none."""
    rejoins: set[asyncio.Future[None]] | None = None
    """The open questions to the owner about redeliveries, which may bring a new fence; None before the first."""
    work: asyncio.Task[None] | None = None
    coroutine: Coroutine[Any, Any, None] | None = None
    """The coroutine of the execution, which `work` runs, perhaps after those of other executions."""
    thread: asyncio.Future[Any] | None = None
    """The thread in which a plain handler runs; the thread may outlive the attempt."""
    calls: set[futures.Future[Any]] | None = None
    """The calls on the event loop for which the thread waits; None before the first."""
    suspicion: Suspicion = Suspicion.NONE
    """Whether the task may kill the process that runs it."""
    parts: PartSender | None = None
    """The sender of the parts of a streamed result; None before the first."""
    span: Span | None = None
    """The span of the attempt, once the handler was called; None when tracing is off."""
    started_ms: int = 0
    """The epoch milliseconds at which the attempt began."""
    limit_seconds: float = 0.0
    """How long the handler may run."""
    on_interrupt: Callable[[Execution], object] | None = None
    """A function that is called when the handler is asked to end."""
    abandoned: bool = False
    """Whether what the handler does is ignored: it did not end when it was canceled, or when its agent drained."""
    acked_early: bool = False
    """Whether the deliveries were acknowledged while the task runs on, because it runs long; workflow tasks only."""

    # -- transitions ------------------------------------------------------------------------------------------

    def enter(self, state: ExecutionState) -> None:
        """Enter a state; `leave` must follow LOADING and RUNNING, and ENDED or ANSWERING must follow POSTED."""
        if self.state not in _PRECEDING[state]:
            raise self._forbidden(f"become {state.name}")
        self.state = state

    def leave(self) -> bool:
        """Leave the state RUNNING, INTERRUPTED or LOADING; return whether the handler was asked to end."""
        state = self.state
        if state is RUNNING:
            self.state = HANDLED
            return False
        if state is LOADING:
            self.state = ACCEPTED
            return False
        if self.abandoned:
            return True
        if state is not INTERRUPTED:
            raise self._forbidden("leave")
        self.state = HANDLED
        return True

    def _forbidden(self, transition: str) -> ForbiddenTransition:
        return ForbiddenTransition(f"An execution that is {self.state.name} cannot {transition}")

    def cancel(self, reason: str, *, handed_off: bool = False) -> None:
        """Cancel the running or loading handler for a reason; without effect in other states, or if canceled before."""
        if self.interruption is None or self.interruption.canceled is None:
            self._interrupt(Interruption(canceled=reason, handed_off=handed_off))

    def expire(self, why: Interruption = TIME_OVER) -> None:
        """Cancel the running or loading handler because its time is over; without effect in other states."""
        self._interrupt(self.interruption or why)

    def _interrupt(self, why: Interruption) -> None:
        if self.state in HANDLING and self.work is not None:
            first, self.state, self.interruption = self.state is not INTERRUPTED, INTERRUPTED, why
            self.work.cancel()
            if first and self.on_interrupt is not None:
                self.on_interrupt(self)

    def abandon(self) -> None:
        """Leave the state INTERRUPTED although the handler still runs; whatever it does from now on is ignored."""
        if self.state is not INTERRUPTED:
            raise self._forbidden("abandon")
        self.abandoned, self.state = True, HANDLED

    def leave_behind(self) -> None:
        """Ignore from now on whatever a handler does that outlasts the drain; without effect once it has ended.

        Its process goes, and what it asks for fails: that is no result of the task, which goes back.
        """
        self.abandoned = self.abandoned or self.state in HANDLING

    @property
    def asked_to_end(self) -> bool:
        """True when a cancel request, or the end of its time, canceled the running or loading handler."""
        return self.interruption is not None

    @property
    def overdue(self) -> bool:
        """True when the handler was asked to end because its time was over, and by no cancel request."""
        return self.interruption is not None and self.interruption.canceled is None

    @property
    def handed_off(self) -> bool:
        """True when the handler was asked to end because another agent has accepted its task."""
        return self.interruption is not None and self.interruption.handed_off

    def stop_calls(self) -> None:
        """Cancel the event-loop calls that the handler's thread waits for; the thread must begin no further calls."""
        for call in tuple(self.calls or ()):
            call.cancel()

    # -- deliveries -------------------------------------------------------------------------------------------

    def wanted_by(self, cancel: Cancel) -> bool:
        """Tell whether a cancel message should end the execution: it applies to all deliveries of the task here."""
        return cancel.means(self.task) and all(cancel.means(task) for task, _ in self.attached or ())

    def attach(self, task: Task, delivery: Delivery) -> None:
        """Add a redelivery of the task, to be settled with the outcome of this execution."""
        if self.attached is None:
            self.attached = []
        self.attached.append((task, delivery))

    @contextmanager
    def rejoining(self) -> Generator[None]:
        """Have `rejoined` wait for the block, which asks the task's owner about a redelivery."""
        decided = asyncio.get_running_loop().create_future()
        self.rejoins = {decided} if self.rejoins is None else self.rejoins | {decided}
        try:
            yield
        finally:
            self.rejoins -= {decided}
            decided.set_result(None)

    async def rejoined(self) -> None:
        """Wait until no question to the owner about a redelivery is open, so that `task` has its last fence."""
        while self.rejoins:
            await asyncio.wait(self.rejoins)

    @property
    def lost(self) -> bool:
        """True when every delivery was lost with its channel, so that none can be settled by this process."""
        return all(delivery.lost for delivery in self.deliveries)

    @property
    def deliveries(self) -> list[Delivery]:
        """The delivery and all attached deliveries."""
        return [self.delivery, *(delivery for _, delivery in self.attached or ())]

    def ack(self) -> None:
        """Acknowledge the delivery and all attached deliveries."""
        for delivery in self.deliveries:
            delivery.ack()

    def ack_early(self) -> None:
        """Acknowledge the deliveries of a long task before its end; call it again for deliveries attached later."""
        self.acked_early = True
        self.ack()

    def requeue(self) -> None:
        """Return the delivery and all attached deliveries to their queues."""
        for delivery in self.deliveries:
            delivery.requeue()

    def reject(self) -> None:
        """Reject the delivery and all attached deliveries, so that the broker makes dead letters of them."""
        for delivery in self.deliveries:
            delivery.reject()


@dataclass(frozen=True, slots=True)
class _TimeLimitPause:
    left: float
    bound: asyncio.TimerHandle
    """The timer of the task's total time, in which its waits count."""


class TimeLimits:
    """The time limits of the running executions, each of whose handlers is canceled as soon as its time is over.

    A timer costs more than the whole work of many handlers. So an execution gets a timer only when it still runs at the
    next check. While an execution awaits other tasks, or a slot to go on with, its time stands still.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._now = loop.time
        self._fresh: dict[Execution, float] = {}
        self._timers: dict[Execution, asyncio.TimerHandle] = {}
        self._paused: dict[Execution, _TimeLimitPause] = {}
        self._look: asyncio.TimerHandle | None = None

    def start(self, execution: Execution, seconds: float) -> None:
        """Start the time limit of an execution, whose handler is canceled `seconds` from now; `stop` must follow."""
        if seconds <= TIME_LIMIT_CHECK_SECONDS:
            self._timers[execution] = self._loop.call_later(seconds, execution.expire)
            return
        self._fresh[execution] = self._now() + seconds
        if self._look is None:
            self._look = self._loop.call_later(TIME_LIMIT_CHECK_SECONDS, self._give_timers)

    def stop(self, execution: Execution) -> None:
        """Drop the time limit of an execution, running or paused, so that it cancels no handler."""
        if self._fresh.pop(execution, None) is None:
            timer = self._timers.pop(execution, None)
            if timer is not None:
                timer.cancel()
            elif (pause := self._paused.pop(execution, None)) is not None:
                pause.bound.cancel()

    def pause(self, execution: Execution, most_seconds: float) -> None:
        """Pause an execution's time limit until `go_on`; cancel the handler after `most_seconds` anyway. Idempotent."""
        due, timer = self._fresh.pop(execution, None), self._timers.get(execution)
        if due is None:
            if timer is None or execution.asked_to_end:
                return
            due = timer.when()
            self.stop(execution)
        now = self._now()
        bound = self._loop.call_at(now + most_seconds, execution.expire, OVER_BY_CLOCK)
        self._paused[execution] = _TimeLimitPause(due - now, bound)

    def go_on(self, execution: Execution) -> None:
        """Resume the paused time limit of an execution; without effect when it is not paused."""
        pause = self._paused.get(execution)
        if pause is not None and not execution.asked_to_end:
            self.stop(execution)
            self.start(execution, min(pause.left, pause.bound.when() - self._now()))

    def _give_timers(self) -> None:
        self._look = None
        for execution, due in self._fresh.items():
            self._timers[execution] = self._loop.call_at(due, execution.expire)
        self._fresh.clear()


class Remembered:
    """The outcomes of ended executions, for repeated deliveries: kept ten minutes or more, unless too many or large.

    The older half is forgotten at once, when the newer half is full or ten minutes old: to find and free the oldest
    outcome at each new one costs as much as a tenth of a small task.
    """

    def __init__(self) -> None:
        self._newer: dict[ExecutionKey, Outcome] = {}
        self._older: dict[ExecutionKey, Outcome] = {}
        self._bytes = 0
        """The size of the newer half's bodies."""
        self._full_at_ms = 0.0
        """The epoch milliseconds at which the newer half is ten minutes old."""

    def get(self, key: ExecutionKey) -> Outcome | None:
        """Return the outcome of an execution; None when it is not remembered."""
        return self._newer.get(key) or self._older.get(key)

    def put(self, key: ExecutionKey, outcome: Outcome) -> None:
        """Remember the outcome of an execution, in place of an earlier outcome under the same key."""
        newer, now_ms = self._newer, outcome.finished_at_ms or 0
        if len(newer) >= MAX_OUTCOMES // 2 or self._bytes >= MAX_OUTCOME_BYTES // 2 or now_ms > self._full_at_ms:
            self._older, self._newer = newer, (newer := {})
            self._bytes, self._full_at_ms = 0, now_ms + OUTCOME_SECONDS * 1000
        newer[key] = outcome
        self._bytes += len(outcome.body)


# The runner of executions; executions that never wait share one asyncio task.
#
# Creating, registering and ending an asyncio task costs as much as all other work for a small task. So one asyncio
# task, a shift, runs the executions that are ready, one after the other, each in a context of its own. The first
# execution that waits keeps the shift's asyncio task to itself until it ends, and later executions of its capability
# get asyncio tasks of their own at once. `asyncio.current_task()`, cancellation and time-outs are therefore what a
# handler expects of them; only handlers that never wait can see that they had the same task.

Work = Coroutine[Any, Any, None]
Perform = Callable[[Execution], Work]


class TaskRunner:
    """A runner that soon starts each execution that it is given, from the event loop and not from the caller."""

    def __init__(self, perform: Perform, executions: dict[Execution, None], loop: asyncio.AbstractEventLoop) -> None:
        """Prepare to run executions by the function `perform`; each new one is added to `executions`."""
        self._perform = perform
        self._executions = executions
        self._loop = loop
        self._ready: deque[Execution] = deque()
        self._wait: set[str] = set()
        """The capabilities with a handler that has had to wait; their executions get asyncio tasks of their own."""
        self._context = copy_context()
        """A clean `contextvars` context for executions, without the changes of any earlier handler."""
        self._next: asyncio.Task[None] | None = None
        """The asyncio task that will run the executions that are ready; None when there is none."""

    def start(self, execution: Execution) -> None:
        """Run an execution soon, in an asyncio task, which is in `execution.work` when the execution begins."""
        self._executions[execution] = None  # which keeps its asyncio task alive, too
        if execution.task.capability in self._wait:
            execution.coroutine = self._perform(execution)
            execution.work = self._loop.create_task(execution.coroutine, context=self._context.copy())
            return
        self._ready.append(execution)
        if self._next is None:
            self._next = self._loop.create_task(self._run(), context=self._context.copy())

    async def _run(self) -> None:
        """Run the executions that are ready now in turn; once one has to wait, leave the rest to other asyncio tasks.

        Executions that become ready meanwhile are for the next shift, so that the event loop has its turn.
        """
        shift, self._next = self._next, None
        ready, self._ready = self._ready, deque()
        assert shift is not None, "it was made to be run"
        try:
            while ready and not shift.cancelling():
                execution = ready.popleft()
                execution.work = shift
                work = execution.coroutine = self._perform(execution)
                context = copy_context()
                try:
                    awaited = context.run(work.send, None)
                except StopIteration:
                    continue
                if execution.state in HANDLING:
                    self._wait.add(execution.task.capability)
                while ready:
                    self.start(ready.popleft())
                await _carry_on(work, awaited, context)
        finally:
            while ready:
                self.start(ready.popleft())


@coroutine
def _carry_on(work: Work, awaited: Any, context: Context) -> Generator[Any, Any, None]:
    """Await a coroutine that was started already, in the coroutine's own `contextvars` context."""
    try:
        while True:
            try:
                sent = yield awaited
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the work
                awaited = context.run(work.throw, error)
            else:
                awaited = context.run(work.send, sent)
    except StopIteration:
        return


# The sender of a streamed result's parts: ordered, bounded by the requester's credit, and confirmed by the broker.
#
# The agent keeps no part that the broker has confirmed: the parts wait in the requester's reply queue, which outlives a
# lost connection of either side.

PART_PUBLISH_SECONDS = 60.0
WAITS_SECONDS = 5.0
"""The pause after which, each time, a sender without credit reports its wait: a credit may be lost, a reader gone."""
NO_READER = "its parts have no reader any more"


class PartSender:
    """The sender of the parts of one streamed result; `send` waits while the requester or the broker is not ready."""

    def __init__(
        self, task: Task, agent_id: AgentId, requests: Requests, address: Address, *, cancel: Callable[[str], None]
    ) -> None:
        """Prepare to send a task's parts to `address`; `cancel` ends a handler whose parts no queue takes any more."""
        self.execution_id = requests.new_token()
        """The random id by which the parts and their credit name the execution."""
        self._task = task
        self._agent_id = agent_id
        self._broker = requests.broker
        self._blobs = requests.blobs
        self._address = address
        self._cancel = cancel
        self._sent = 0
        self._until = task.stream
        """The number up to which parts may be sent."""
        self._unconfirmed = 0
        self._error: BaseException | None = None
        self._turn: asyncio.Future[None] | None = None

    def credit(self, credit: Credit) -> None:
        """Let the handler send parts up to the number that the requester allows; older or repeated news is ignored."""
        self._until = max(self._until, credit.until)
        self._wake()

    async def send(self, body: bytes) -> None:
        """Post the next part, a large one as a blob, once credit allows it and few enough parts await their confirm.

        A part over the inline limit is large. The confirm of this part is not awaited; `end` awaits all of them.

        Raises:
            TooLarge: when the part is over the inline limit and the blob store does not take it.
            BlobUnavailable: when the blob store does not answer; retryable.
            CoditectError: when an earlier part could not be published; retryable.
        """
        while self._error is None and (self._sent >= self._until or self._unconfirmed >= MOST_AHEAD):
            if not await self._woken_within(WAITS_SECONDS) and not self._unconfirmed:
                self._post(b"")
        if self._error is not None:
            raise self._error
        claims = len(body) > MAX_BODY_BYTES
        self._post((await self._blobs.put(body)).document if claims else body, claims=claims)
        self._sent += 1

    async def end(self, *, complete: bool) -> int:
        """Wait until the broker has all parts, and return their number; with `complete`, first send an end marker.

        Raises:
            CoditectError: when a part could not be published; retryable.
        """
        if complete:
            self._post(b"", last=True)
        while self._error is None and self._unconfirmed:
            await self._woken_within(WAITS_SECONDS)
        if self._error is not None:
            raise self._error
        return self._sent

    def _post(self, body: bytes, *, last: bool = False, claims: bool = False) -> None:
        part = Part(self.execution_id, self._sent, self._agent_id, self._task.attempt, body, last, claims)
        promise: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        promise.add_done_callback(self._published)
        self._unconfirmed += 1
        self._broker.post(
            part_message(part, self._task),
            promise,
            exchange=self._address.exchange,
            routing_key=self._address.routing_key,
            timeout_seconds=PART_PUBLISH_SECONDS,
        )

    def _published(self, promise: asyncio.Future[None]) -> None:
        self._unconfirmed -= 1
        error = promise.exception()
        if isinstance(error, Unroutable | NotFound):
            self._cancel(NO_READER)
        elif error is not None:
            self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    async def _woken_within(self, seconds: float) -> bool:
        """Wait for a credit, or a publish's confirm or error, some seconds at most; return whether one came."""
        self._turn = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._turn}, timeout=seconds)
        return self._turn.done()
