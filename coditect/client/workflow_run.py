"""The handle of a started workflow, which asks the control plane by the workflow's id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar, overload

from coditect.blobs import whole_value
from coditect.client.checkpoints import Restorable
from coditect.client.completion import ENDINGS, Completions
from coditect.client.control_plane import ASK_SECONDS, ControlPlane, pages
from coditect.client.coordination.audit import signed
from coditect.codec import codec, encode_any
from coditect.collaboration.state import SharedState, StateRequests
from coditect.errors import (
    ControlPlaneRequired,
    InvalidTask,
    ResultTimeout,
    Retryable,
    TaskCanceled,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskRejected,
)
from coditect.messaging.event_stream import EventStreams
from coditect.model.duration import Duration, seconds
from coditect.model.event import Event
from coditect.model.result import EXPIRED
from coditect.wire.control import Verb
from coditect.wire.json import dumps, loads
from coditect.wire.state import workflow_space
from coditect.workflow.rows import AttemptRow, NodeInput, NodeRow, WorkflowRow
from coditect.workflow.states import TaskState, WorkflowState

T = TypeVar("T")
R = TypeVar("R")
Seen: TypeAlias = Callable[[WorkflowRow | None], object]

DEFAULT_TIMEOUT: Duration = "1h"
LOOK_SECONDS = 5.0
"""How long one request for a workflow's state may take before it counts as unanswered."""
FIRST_PAUSE_SECONDS = 0.02
LONGEST_PAUSE_SECONDS = 1.0
FIRST_HEARD_PAUSE_SECONDS = 0.1
LONGEST_HEARD_PAUSE_SECONDS = 30.0  # while events arrive: a request only makes up for a lost one
PAUSE_SHARE = 0.2
"""The pause between state requests, as a part of the time waited so far: a long wait costs few requests."""
LAST_EVENT_SECONDS = 1.0
"""How long after a workflow's end the event of the end may come."""
LATE_EVENT_SECONDS = 0.1
"""How long the event of a workflow's end is held back for earlier events, which may arrive later."""
EVENT_PATTERNS = ("workflow.*", "node.*")
_UNENDED = frozenset(state.value for state in WorkflowState if not state.terminal)


@dataclass(frozen=True, slots=True)
class Ending:
    """The state of a node or a workflow, with its value or failure once it has ended."""

    state: TaskState
    value: Any
    failure: Mapping[str, Any] | None
    reason: str = ""
    """The reason that was given when the workflow was canceled; empty for a node."""


class Run(Restorable):
    """The handle of a started workflow; made by `Client.start`, or from the workflow's id by `Client.run`.

    The control plane answers from the ledger; that the workflow still runs, maybe from memory.

    Raises:
        ControlPlaneRequired: by every method, when there is no control plane.
        Retryable: by every method, such as BrokerUnavailable.
        NotFound: by every method, when the control plane has no such workflow.
    """

    __slots__ = ("_completions", "_control", "_event_stream", "id", "new")

    def __init__(
        self, workflow: str, control: ControlPlane, *, event_stream: EventStreams, completions: Completions, new: bool
    ) -> None:
        self.id = workflow
        """The workflow's id, by which any process may ask the control plane."""
        self.new = new
        """Whether `start` started this workflow; False for an earlier one with the same key, or a handle from an id."""
        self._control = control
        self._event_stream = event_stream
        self._completions = completions

    @property
    def shared(self) -> SharedState:
        """The shared state of the workflow, which its nodes read and write by `ctx.shared`."""
        return SharedState(StateRequests(self._control), workflow_space(self.id))

    async def state(self) -> WorkflowState:
        """Return the present state of the workflow."""
        return (await self.overview()).state

    async def overview(self) -> WorkflowRow:
        """Return the present state of the workflow, the number of nodes in each state, and its times."""
        return await self._look(ASK_SECONDS)

    async def nodes(self) -> AsyncIterator[NodeRow]:
        """Yield the nodes, sorted by name, with state, agent and times; also the elements of maps, such as `review[3]`.

        The nodes are read page by page: each page is of one instant, the whole is not.
        """
        async for row in self._rows(Verb.NODES, "nodes"):
            yield NodeRow.read(row)

    async def attempts(self, node: str | None = None) -> AsyncIterator[AttemptRow]:
        """Yield every attempt of one node, or of all nodes: agent, times, and the reason of a failure."""
        only = {} if node is None else {"node": node}
        async for row in self._rows(Verb.ATTEMPTS, "attempts", **only):
            yield AttemptRow.read(row)

    async def _look(self, timeout: Duration) -> WorkflowRow:
        return WorkflowRow.read(await self._control.ask(Verb.GET, {"workflow": self.id}, timeout=timeout))

    def _rows(self, verb: Verb, field: str, **asked: Any) -> AsyncIterator[object]:
        return pages(self._control, verb, field, {"workflow": self.id} | asked)

    # -- its end ----------------------------------------------------------------------------------------

    async def wait(self, *, timeout: Duration = DEFAULT_TIMEOUT, seen: Seen | None = None) -> WorkflowState:
        """Wait for the end of the workflow, through outages, and return its final state.

        `seen` is called with the state that each request on the way returns, and with None without an answer.

        Raises:
            ResultTimeout: when the workflow did not end in time; it goes on.
        """
        return (await self._ended(timeout, seen)).state

    async def _ended(self, timeout: Duration, seen: Seen | None = None) -> WorkflowRow:
        async def look(left: float) -> WorkflowRow:
            row: WorkflowRow | None = None
            try:
                row = await self._look(left)
            finally:
                if seen is not None:
                    seen(row)
            return row

        return await self._until(look, lambda row: row.state.terminal, timeout, by_event=seen is None)

    @overload
    async def result(self, *, node: str | None = ..., timeout: Duration = ...) -> Any: ...
    @overload
    async def result(self, model: type[T], *, node: str | None = ..., timeout: Duration = ...) -> T: ...
    async def result(self, model: Any = Any, *, node: str | None = None, timeout: Duration = DEFAULT_TIMEOUT) -> Any:
        """Wait for the end; return the last node's value (of several, an object by name), or with `node` that node's.

        With `node` the call waits for that node alone. A skipped node gives None. The value is validated as `model`.

        Raises:
            TaskFailed: when there is no value; this and the next three carry the failure's facts.
            TaskRejected: when the workflow or node was rejected.
            TaskCanceled: when it was canceled.
            TaskExpired: when a deadline passed.
            ResultTimeout: when the end did not come in time.
        """
        if node is None:
            ending = await self._last(timeout)
            if ending.state is not TaskState.COMPLETED:
                raise self._error(ending.state.value, ending.failure, reason=ending.reason)
        else:
            ending = await self.ending(node, timeout=timeout)
            if ending.state not in (TaskState.COMPLETED, TaskState.SKIPPED):
                raise self._error(ending.state.value, ending.failure, node=node)
        return codec(model).decode(dumps(ending.value))

    async def _last(self, timeout: Duration) -> Ending:
        """Wait for the workflow's end, and return its final state with its value or failure."""
        begun = False

        async def look(left: float) -> Ending | None:
            nonlocal begun
            if not begun:  # so that later looks are answered from memory, while it runs
                begun = True
                if not (await self._look(left)).state.terminal:
                    return None
            ending = await self._ending(None, left)
            return ending if ending.state.terminal else None

        ending = await self._until(look, lambda found: found is not None, timeout, by_event=True)
        assert ending is not None
        return ending

    async def look(self, node: str) -> Ending:
        """Return the present state of a node, with its value or failure if it has one."""
        return await self._ending(node, ASK_SECONDS)

    async def input(self, node: str) -> NodeInput:
        """Return the input of a node's task, as far as it is known yet; large values in it stay blob references."""
        return NodeInput.read(await self._control.ask(Verb.NODE_INPUT, {"workflow": self.id, "node": node}))

    async def ending(self, node: str, *, timeout: Duration = DEFAULT_TIMEOUT, alone: bool = False) -> Ending:
        """Wait for the end of a node, and return its final state with its value or failure.

        `alone` says that the workflow ends with the node.

        Raises:
            ResultTimeout: when the node did not end in time.
        """

        async def look(left: float) -> Ending:
            return await self._ending(node, left)

        return await self._until(look, lambda ending: ending.state.terminal, timeout, by_event=alone)

    async def _ending(self, node: str | None, timeout: Duration) -> Ending:
        asked = {"workflow": self.id} if node is None else {"workflow": self.id, "node": node}
        answer = await self._control.ask(Verb.RESULT, asked, timeout=timeout)
        told, paged = answer.get("value"), answer.get("next") is not None
        while answer.get("next") is not None:
            answer = await self._control.ask(Verb.RESULT, {**asked, "after": answer["next"]}, timeout=timeout)
            if not isinstance(told, dict) or not isinstance(answer.get("value"), dict):
                raise Retryable("The workflow went on while its value was read", workflow=self.id)
            told |= answer["value"]
        if paged and isinstance(told, dict) and len(told) == 1:
            (told,) = told.values()
        failure = answer.get("failure")
        value = await whole_value(self._control.blobs, told)
        reason = str(answer.get("reason") or "")
        return Ending(_state_of(answer), value, failure if isinstance(failure, Mapping) else None, reason)

    def _error(self, state: str, failure: Mapping[str, Any] | None, **facts: str) -> TaskError:
        told = {name: str((failure or {}).get(name) or "") for name in ("reason", "type", "message", "fix")}
        known = {"workflow": self.id} | facts | {name: text for name, text in told.items() if text}
        kind = TaskExpired if known.get("reason") in EXPIRED else _ERRORS.get(state, TaskFailed)
        shown = {name: fact for name, fact in known.items() if fact}
        error = kind(
            "The node has no value" if "node" in facts else "The workflow did not complete", state=state, **shown
        )
        if traceback := (failure or {}).get("traceback"):
            error.add_note(f"At the agent:\n{traceback}")
        return error

    async def _until(
        self,
        look: Callable[[float], Awaitable[R]],
        enough: Callable[[R], bool],
        timeout: Duration,
        *,
        by_event: bool,
    ) -> R:
        """Repeat a request until `enough` accepts the answer, even while a control plane that once answered is silent.

        With `by_event` only the end of the workflow is enough, so that a request only makes up for a lost event.
        """
        longest = LONGEST_HEARD_PAUSE_SECONDS if by_event else LONGEST_PAUSE_SECONDS
        now = asyncio.get_running_loop().time
        begin, end = now(), now() + seconds(timeout)
        with self._completions.waiting(self.id) as expect:
            while True:
                waited = now() - begin
                # expected before the look, so that an end in between is not missed
                heard = expect()
                first = FIRST_HEARD_PAUSE_SECONDS if by_event and self._completions.heard else FIRST_PAUSE_SECONDS
                pause = max(first, PAUSE_SHARE * waited)
                cause: Exception | None = None
                try:
                    seen = await look(max(0.001, min(LOOK_SECONDS, end - now())))
                    if enough(seen):
                        return seen
                except (Retryable, ControlPlaneRequired) as error:
                    if isinstance(error, ControlPlaneRequired) and not self._control.answered:
                        raise
                    cause = error
                left = end - now()
                if left <= FIRST_PAUSE_SECONDS:
                    fix = f"it goes on by itself; ask again: coditect workflow show {self.id}"
                    raise ResultTimeout("It did not end in time", workflow=self.id, timeout=timeout, fix=fix) from cause
                pause = min(longest, pause, max(FIRST_PAUSE_SECONDS, left / 2))  # the last look is near the end
                await asyncio.wait({heard}, timeout=pause)

    # -- as it happens ----------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[Event]:
        """Yield the workflow's events from now on to its end: `node.started`, ..., `workflow.completed`.

        An event may be missed, but not the last one: the end is also asked for, and made an event when none comes.
        """
        async for event in self.told(EVENT_PATTERNS, frozenset({self.id})):
            yield event

    async def told(self, patterns: tuple[str, ...], subjects: Collection[str]) -> AsyncIterator[Event]:
        """Yield the workflow's events of the given patterns and subjects; the event of its end is never missed."""
        async with self._event_stream.stream(*patterns, of=subjects) as stream:
            ended = asyncio.ensure_future(self._end_after_its_events())
            late = asyncio.ensure_future(asyncio.Event().wait())
            try:
                ending: Event | None = None
                while ending is None and (event := await stream.next_before(ended)) is not None:
                    if event.type in ENDINGS:
                        ending = event
                    else:
                        yield event
                late.get_loop().call_later(LATE_EVENT_SECONDS, late.cancel)
                while (event := await stream.next_before(late)) is not None:
                    yield event
                yield ending or _ending_event(ended.result())
            finally:
                ended.cancel()
                late.cancel()
                await asyncio.wait({ended, late})

    async def _end_after_its_events(self) -> WorkflowRow:
        row = await self.overview()
        if not row.state.terminal:
            row = await self._ended("3650d")
            await asyncio.sleep(LAST_EVENT_SECONDS)
        return row

    # -- what may be done about it ----------------------------------------------------------------------

    async def cancel(self, *, reason: str = "", compensate: bool = True) -> None:
        """Cancel the workflow: running nodes are asked to stop, and only compensations of completed nodes still start.

        A cancel survives restarts and is done once. The cancel and the workflow's own completion race to exactly one
        end, which `wait` returns. Completed nodes that declare a compensation are compensated unless `compensate` is
        False, which also ends a compensation under way.
        """
        await self._control.ask(Verb.CANCEL, {"workflow": self.id, "reason": reason, "compensate": compensate})

    async def pause(self) -> None:
        """Pause the workflow: no further node is published, and published nodes go on."""
        await self._control.ask(Verb.PAUSE, {"workflow": self.id})

    async def resume(self) -> None:
        """Continue a paused workflow, or run a failed one again from its failed nodes or its failed compensation.

        Raises:
            InputError: when the workflow has completed or was canceled; `redrive` runs a canceled node again.
        """
        await self._control.ask(Verb.RESUME, {"workflow": self.id})

    async def redrive(self, node: str, value: Any = None, *, dry_run: bool = False) -> dict[str, Any]:
        """Run a node that ended without a value again, on its old input or `value`; with `dry_run` only describe that.

        Dependents of the node follow it. With `dry_run` nothing is done, and the answer describes the redrive.
        """
        asked: dict[str, Any] = {"workflow": self.id, "node": node, "dry_run": dry_run}
        if value is not None:
            asked["input"] = loads(encode_any(value))
        return await self._control.ask(Verb.REDRIVE, asked)

    async def answer(self, node: str, *, granted: bool, by: str, comment: str = "", key: str | None = None) -> None:
        """Answer an approval; the person `by` is recorded, a `key` signs the answer, and only the first answer counts.

        Raises:
            InvalidTask: when `by` is empty.
            NotFound: when the node is no approval that waits.
        """
        asked = {"workflow": self.id, "node": node, "granted": granted, "by": by, "comment": comment}
        await self._control.ask(Verb.ANSWER, asked if key is None else await signed(self._control, asked, key))

    async def signal(self, name: str, value: Any = None, *, id: str | None = None) -> str:  # noqa: A002
        """Send a signal; return the name of the node that waited for it, or "" if none did, or if the `id` came before.

        A signal that comes before a node waits is kept for the next node that awaits the name. A signal whose `id` came
        before changes nothing, so a repetition after an error is harmless with an id of your own.

        Raises:
            InputError: when the workflow has ended, or keeps 100 signals of the name already.
        """
        kept = {"value": loads(encode_any(value)), "id": id or self._control.new_id()}
        told = await self._control.ask(Verb.SIGNAL, {"workflow": self.id, "signal": name} | kept)
        return str(told.get("node") or "")


def _state_of(answer: Mapping[str, Any]) -> TaskState:
    """Return a node's or workflow's state in the control plane's answer; WORKING for a workflow that has not ended."""
    state = str(answer.get("state"))
    if state in _UNENDED:
        return TaskState.WORKING
    try:
        return TaskState(state)
    except ValueError as error:
        raise InvalidTask("The control plane's answer names no state", given=str(answer)[:200]) from error


def _ending_event(row: WorkflowRow) -> Event:
    return Event(
        f"workflow.{row.state.value}",
        f"/workflows/{row.workflow}",
        f"{row.workflow}/{row.state.value}",
        row.finished_at_ms or 0,
        row.workflow,
        {"name": row.name, "state": row.state.value},
    )


_ERRORS: Mapping[str, type[TaskError]] = MappingProxyType(
    {"failed": TaskFailed, "dead": TaskFailed, "rejected": TaskRejected, "canceled": TaskCanceled}
)
