"""The handle of a started workflow, which asks the control plane by the workflow's id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, overload

from coditect.blobs import whole_value
from coditect.client.approvals import Approvals
from coditect.codec import codec, encode_any
from coditect.collaboration.state import SharedState, StateRequests
from coditect.errors import (
    ControlPlaneRequired,
    InputError,
    InvalidTask,
    ResultTimeout,
    Retryable,
    TaskCanceled,
    TaskError,
    TaskExpired,
    TaskFailed,
    TaskRejected,
)
from coditect.messaging.control_plane import ASK_SECONDS, ControlPlane, pages, rows_of
from coditect.messaging.event_stream import EventStreams
from coditect.model.duration import Duration, seconds
from coditect.model.message import Event
from coditect.model.result import EXPIRED
from coditect.wire.control import Verb, workflow_space
from coditect.wire.json import dumps, loads
from coditect.workflow.attempt_row import AttemptRow
from coditect.workflow.rows import CheckpointRow, DiscardedRow, NodeInput, NodeRow, RestoreRow, WorkflowRow
from coditect.workflow.states import TaskState, WorkflowState

MOST_NAMED_NODES = 5
"""The largest number of nodes that the refusal of a restore names."""


@dataclass(frozen=True, slots=True)
class RestorePlan:
    """The plan of a restore to a checkpoint: the nodes whose work it discards, if their handlers may have begun."""

    checkpoint: str
    nodes: tuple[DiscardedRow, ...]
    """The nodes in the order of their names; the others that are discarded have done nothing."""
    token: str
    """The position of the workflow's history for which the plan was made; the restore is refused at another one."""

    @property
    def lasting(self) -> tuple[str, ...]:
        """The discarded nodes whose effects would stay: no compensation is declared, or the node has not completed."""
        return tuple(row.node for row in self.nodes if not row.compensated)


ENDINGS: Mapping[str, WorkflowState] = {f"workflow.{state.value}": state for state in WorkflowState if state.terminal}
"""The event types that report the end of a workflow, with the final state that each means."""
T = TypeVar("T")
R = TypeVar("R")
Seen: TypeAlias = Callable[[WorkflowRow | None], object]

DEFAULT_TIMEOUT: Duration = "1h"
STATE_REQUEST_SECONDS = 5.0
"""How long the answer to a request may take, beyond the time for which the request is held, before it is missed."""
FIRST_PAUSE_SECONDS = 0.02
"""The pause before a request that was answered early, or not at all, is sent again."""
FIRST_HELD_SECONDS = 2.0
LONGEST_HELD_SECONDS = 30.0
LONGEST_SEEN_SECONDS = 1.0
"""The longest time for which a request is held by the control plane if each answer on the way is shown to somebody."""
WAITED_SHARE = 0.2
"""The time for which a request is held, as a part of the time waited so far: a long wait costs few requests, and a
dispatcher that dies with the request delays the answer by a fifth."""
ANSWER_SECONDS = 0.1
"""How long before the end of a wait its last request is to be answered."""
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
    attempt: AttemptRow | None = None
    """The node's last attempt; None for a workflow."""


@dataclass(slots=True, eq=False, repr=False)
class WorkflowRun:
    """The handle of a started workflow; made by `Client.start`, or from the workflow's id by `Client.run`.

    The control plane answers from the ledger; that the workflow still runs, maybe from memory.

    Raises:
        ControlPlaneRequired: by every method, when there is no control plane.
        Retryable: by every method, such as BrokerUnavailable.
        NotFound: by every method, when the control plane has no such workflow.
    """

    id: str
    """The workflow's id, by which any process may ask the control plane."""
    _control: ControlPlane
    _event_stream: EventStreams
    new: bool
    """Whether `start` started this workflow; False for an earlier one with the same key, or a handle from an id."""

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

    async def _look(self, timeout: Duration, held_seconds: float = 0.0) -> WorkflowRow:
        asked = {"workflow": self.id}
        return WorkflowRow.read(await self._control.ask(Verb.GET, asked, timeout=timeout, held_seconds=held_seconds))

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
        async def look(left: float, held: float) -> WorkflowRow:
            row: WorkflowRow | None = None
            try:
                row = await self._look(left, held)
            finally:
                if seen is not None:
                    seen(row)
            return row

        longest = LONGEST_HELD_SECONDS if seen is None else LONGEST_SEEN_SECONDS
        return await self._until(look, lambda row: row.state.terminal, timeout, longest)

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
            ending = await self.ending(timeout=timeout)
            if ending.state is not TaskState.COMPLETED:
                raise self._error(ending.state.value, ending.failure, reason=ending.reason)
        else:
            ending = await self.ending(node, timeout=timeout)
            if ending.state not in (TaskState.COMPLETED, TaskState.SKIPPED):
                raise self._error(ending.state.value, ending.failure, node=node)
        return codec(model).decode(dumps(ending.value))

    async def look(self, node: str) -> Ending:
        """Return the present state of a node, with its value or failure if it has one."""
        return await self._ending(node, ASK_SECONDS)

    async def input(self, node: str) -> NodeInput:
        """Return the input of a node's task, as far as it is known yet; large values in it stay blob references."""
        return NodeInput.read(await self._control.ask(Verb.NODE_INPUT, {"workflow": self.id, "node": node}))

    async def ending(self, node: str | None = None, *, timeout: Duration = DEFAULT_TIMEOUT) -> Ending:
        """Wait for the end of a node, or of the workflow, and return the final state with the value or failure.

        Raises:
            ResultTimeout: when the end did not come in time.
        """

        async def look(left: float, held: float) -> Ending:
            return await self._ending(node, left, held)

        return await self._until(look, lambda ending: ending.state.terminal, timeout)

    async def _ending(self, node: str | None, timeout: Duration, held_seconds: float = 0.0) -> Ending:
        asked = {"workflow": self.id} if node is None else {"workflow": self.id, "node": node}
        answer = await self._control.ask(Verb.RESULT, asked, timeout=timeout, held_seconds=held_seconds)
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
        attempt = None if node is None else AttemptRow.read(answer.get("attempt"))
        return Ending(_state_of(answer), value, failure if isinstance(failure, Mapping) else None, reason, attempt)

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
        look: Callable[[float, float], Awaitable[R]],
        enough: Callable[[R], bool],
        timeout: Duration,
        longest_held: float = LONGEST_HELD_SECONDS,
    ) -> R:
        """Repeat a request until `enough` accepts the answer, even while a control plane that once answered is silent.

        `look` sends the request, given the seconds until it is missed, and those for which the control plane may hold
        it until the end comes.
        """
        now = asyncio.get_running_loop().time
        begin, end = now(), now() + seconds(timeout)
        while True:
            asked_at = now()
            held = max(FIRST_HELD_SECONDS, WAITED_SHARE * (asked_at - begin))
            held = max(0.0, min(held, longest_held, end - asked_at - ANSWER_SECONDS))
            cause: Exception | None = None
            try:
                seen = await look(max(0.001, min(held + STATE_REQUEST_SECONDS, end - asked_at)), held)
                if enough(seen):
                    return seen
            except (Retryable, ControlPlaneRequired) as error:
                if isinstance(error, ControlPlaneRequired) and not self._control.answered:
                    raise
                cause = error
            left = end - now()
            if left <= FIRST_PAUSE_SECONDS:
                fix = f"it goes on by itself; ask again: coditect workflow get {self.id}"
                raise ResultTimeout("It did not end in time", workflow=self.id, timeout=timeout, fix=fix) from cause
            if now() < asked_at + max(
                held, FIRST_PAUSE_SECONDS
            ):  # it was not held, or the shard goes to another dispatcher
                pause = max(FIRST_PAUSE_SECONDS, WAITED_SHARE * (now() - begin))
                await asyncio.sleep(min(pause, LONGEST_SEEN_SECONDS, max(FIRST_PAUSE_SECONDS, left / 2)))

    # -- as it happens ----------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[Event]:
        """Yield the workflow's events from now on to its end: `node.started`, ..., `workflow.completed`.

        An event may be missed, but not the last one: the end is also asked for, and made an event when none comes.
        """
        async for event in self.told(EVENT_PATTERNS, frozenset({self.id})):
            yield event

    async def told(self, patterns: tuple[str, ...], subjects: Collection[str]) -> AsyncIterator[Event]:
        """Yield the workflow's events of the given patterns and subjects; the event of its end is never missed."""
        async with self._event_stream.stream(*patterns, subjects=subjects) as stream:
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

    async def redrive(self, node: str, input: Any = None, *, dry_run: bool = False) -> dict[str, Any]:
        """Run a node that ended without a value again, on its old input or `input`; with `dry_run` only describe that.

        Dependents of the node follow it. With `dry_run` nothing is done, and the answer describes the redrive.
        """
        asked: dict[str, Any] = {"workflow": self.id, "node": node, "dry_run": dry_run}
        if input is not None:
            asked["input"] = loads(encode_any(input))
        return await self._control.ask(Verb.REDRIVE, asked)

    async def checkpoint(self, name: str) -> None:
        """Name the workflow's present state as a checkpoint, so that the workflow can be restored to that state.

        A name that was given before now means this checkpoint. Every completed node is a checkpoint by itself.

        Raises:
            InputError: when the workflow has ended, or the name is that of a node, or no name.
        """
        await self._control.ask(
            Verb.CHECKPOINT, {"workflow": self.id, "checkpoint": name, "writer": self._control.name}
        )

    async def checkpoints(self) -> list[CheckpointRow]:
        """Return the checkpoints of the workflow, the earliest first: completed nodes, and states with a name."""
        rows = pages(self._control, Verb.CHECKPOINTS, "checkpoints", {"workflow": self.id})
        found = [CheckpointRow.read(row) async for row in rows]
        return sorted(found, key=lambda row: (row.at_ms, row.node == "", row.publication))

    async def restores(self) -> list[RestoreRow]:
        """Return the last restores of the workflow, at most 100, the earliest first."""
        answer = await self._control.ask(Verb.CHECKPOINTS, {"workflow": self.id, "limit": 1})
        return [RestoreRow.read(row) for row in rows_of(answer, "restores")]

    async def plan_restore(self, checkpoint: str) -> RestorePlan:
        """Return the plan of a restore to a checkpoint, with the nodes whose work it would discard; change nothing.

        Raises:
            NotFound: when the workflow has no such checkpoint.
            InputError: when the workflow cannot be restored: it was canceled or compensated, or its shared state of
                that time is not kept any more.
            Retryable: while an earlier restore, redrive or cancel is not done, or when the workflow goes on too fast.
        """
        asked = {"workflow": self.id, "checkpoint": checkpoint}
        answer = await self._control.ask(Verb.RESTORE_PLAN, asked)
        token, nodes = str(answer["token"]), [DiscardedRow.read(row) for row in rows_of(answer, "nodes")]
        while answer.get("next") is not None:
            answer = await self._control.ask(Verb.RESTORE_PLAN, {**asked, "after": answer["next"]})
            if answer["token"] != token:
                fix = "try again, or pause the workflow first"
                raise Retryable("The workflow went on while its restore was planned", workflow=self.id, fix=fix)
            nodes += [DiscardedRow.read(row) for row in rows_of(answer, "nodes")]
        return RestorePlan(checkpoint, tuple(nodes), token)

    async def restore(self, checkpoint: str | RestorePlan, *, by: str) -> None:
        """Bring the workflow back to a checkpoint: later nodes are compensated where declared, and run again.

        Running nodes are canceled, and results of discarded attempts are refused. The call returns when the restore is
        committed; the workflow goes on by itself. A plan is carried out as it is; with the name of a checkpoint nothing
        is discarded that cannot be undone. `by` is recorded.

        Raises:
            InputError: when a name is given and effects would remain (`nodes` has some), or as of `plan_restore`.
            VersionConflict: when a further node has begun or completed since the plan; nothing was changed.
        """
        plan = checkpoint if isinstance(checkpoint, RestorePlan) else await self.plan_restore(checkpoint)
        if plan is not checkpoint and plan.lasting:
            raise InputError(
                "The restore would discard nodes whose effects cannot be undone",
                workflow=self.id,
                nodes=plan.lasting[:MOST_NAMED_NODES],
                count=len(plan.lasting),
                fix="look at `await run.plan_restore(...)`, and give it in place of the name to accept that",
            )
        asked = {"workflow": self.id, "checkpoint": plan.checkpoint, "token": plan.token, "by": by}
        await self._control.ask(Verb.RESTORE, asked)

    async def grant(self, node: str, *, by: str, comment: str = "", key: str | None = None) -> None:
        """Grant an approval of the workflow; see `Approvals.grant`."""
        await Approvals(self._control).grant(f"{self.id}:{node}", by=by, comment=comment, key=key)

    async def deny(self, node: str, *, by: str, comment: str = "", key: str | None = None) -> None:
        """Deny an approval of the workflow; see `Approvals.deny`."""
        await Approvals(self._control).deny(f"{self.id}:{node}", by=by, comment=comment, key=key)

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


_ERRORS: Mapping[str, type[TaskError]] = {
    "failed": TaskFailed,
    "dead": TaskFailed,
    "rejected": TaskRejected,
    "canceled": TaskCanceled,
}
