"""The part of a load that runs workflows, pauses, cancels, signals and redrives some, and records how each ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from random import Random
from typing import Any, TypeAlias, TypeVar

from chaos.history import Note, Type
from chaos.load.generators import BROKEN, SIGNAL, Generators, is_limited
from chaos.load.pace import Pace
from chaos.load.work import UNDO
from coditect import CoditectError, Workflow
from coditect.client.client import Client
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import InputError
from coditect.workflow.definition import Definition
from coditect.workflow.states import WorkflowState

T = TypeVar("T")
Ending: TypeAlias = Coroutine[Any, Any, None] | None
"""A coroutine that waits for the end of started work and records it; None when no work was started."""
PAUSE_SECONDS = 0.25
COMPLETES = ("completed",)
UNDONE = ("compensated",)
CANCELED = ("canceled", "completed")
"""The states in which a workflow may end that the load cancels."""
SPREAD = 0.618034
"""The step between the chances of a workflow and the next: ten in a row spread over [0, 1), after Weyl."""
MOST_REDRIVES = 20
"""The most redrives of one workflow, after which its state counts as final."""


class WorkflowLoad:
    """The client of a load, which starts workflows, repeats requests until answered, and records what it did."""

    def __init__(self, client: Client, note: Note, random: Random, pace: Pace) -> None:
        self.client = client
        self.note = note
        self.random = random
        self.pace = pace
        self.shapes = Generators(random, pace)
        self._work = asyncio.TaskGroup()
        self._number = 0
        self._chance = 0.0
        self.closed = asyncio.Event()
        """The event that stops the start of new work."""
        self.begun = self.ended = 0

    def accepted(self, key: str, **facts: object) -> None:
        """Record that a workflow or task was accepted, with the `facts` that the checks of the history need."""
        self.note(Type.INVOKE, "accept", key, **facts)
        self.note(Type.OK, "accept", key)
        self.begun += 1

    def over(self, key: str, state: str | None) -> None:
        """Record the final state of a workflow or task that the client was told; None means that it was told none."""
        if state is None:
            self.note(Type.INFO, "end", key)
            return
        self.note(Type.OK, "end", key, state=state)
        self.ended += 1

    def key(self) -> str:
        """Return a new idempotency key."""
        self._number += 1
        return f"chaos-{self._number}-{self.random.getrandbits(32):x}"

    async def workflow(self, drawn: Workflow | None = None, value: object = None) -> None:
        """Run one workflow to its end: cancel or pause it by chance, signal its waiting nodes, redrive its broken node.

        It is submitted under one idempotency key until it is accepted.
        """
        flow = drawn or self.shapes.drawn()
        definition = flow.definition()
        run = await self._started(definition, value)
        if run is None:
            return
        self._chance += SPREAD  # with a plain draw, a slow run may pause and cancel none
        chance = (self._chance + self.random.random() / 10) % 1
        broken = any(node.name == BROKEN for node in definition.nodes)
        canceled = chance < self.pace.canceled and not broken
        paused = not canceled and not broken and chance < self.pace.canceled + self.pace.paused
        facts = self.shapes.told(definition) | ({"priorities": {}} if paused else {})  # it waits on purpose
        ends = (CANCELED if canceled else ()) + (UNDONE if facts["undo"] else () if canceled else COMPLETES)
        if is_limited(definition):
            ends, facts = (*ends, "failed"), facts | {"meant": {}}
        self.accepted(run.id, ends=ends, **facts)
        if canceled:
            await self.soon()
            await self.noted("cancel", run.id, lambda: run.cancel(reason="chaos"))  # it ends either way
        elif paused:
            await self._pause(run)
        for number, node in enumerate(facts["signals"]):
            if number:  # the first comes before its node waits for it
                await self.soon()
            await self._signal(run, f"{run.id}:{node}")
        await self.end_of(run, redriven=broken)

    async def started(self, flow: Workflow | Definition, value: object = None, **facts: object) -> WorkflowRun | None:
        """Start a workflow and record its acceptance; None after a non-retryable error once the load is closed.

        The `facts` are what the checks of the history need beside the workflow's definition.
        """
        definition = flow.definition() if isinstance(flow, Workflow) else flow
        run = await self._started(definition, value)
        if run is not None:
            self.accepted(run.id, **{"ends": COMPLETES, **self.shapes.told(definition), **facts})
        return run

    async def _started(self, definition: Definition, value: object) -> WorkflowRun | None:
        key = self.key()
        return await self.keyed(
            key, lambda: self.client.start(definition, value, idempotency_key=key), lambda run: run.id
        )

    async def end_of(self, run: WorkflowRun, *, redriven: bool = False) -> WorkflowState | None:
        """Wait for the end of a workflow, and record and return its state; None after any error, such as a timeout."""
        state = await self._end_of_run(run, redriven=redriven)
        self.over(run.id, None if state is None else state.value)
        return state

    async def ends_of(self, wave: Iterable[Ending]) -> set[asyncio.Task[None]]:
        """Wait for the ends of a wave of tasks, but not longer than 10 s, since one may be lost.

        Return the tasks that still wait. The 10 s are `Pace.patience_seconds`.
        """
        ends = {self._work.create_task(one) for one in wave if one is not None}
        return (await asyncio.wait(ends, timeout=self.pace.patience_seconds))[1] if ends else ends

    async def soon(self) -> None:
        """Wait for a random time, as before a cancel: 5 ms to 1.5 s unless `Pace.soon_milliseconds` differs."""
        await asyncio.sleep(self.random.randint(*self.pace.soon_milliseconds) / 1000)

    async def insist(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Repeat a request until it succeeds; once the load is closed, return None after a non-retryable error."""
        while True:
            try:
                return await ask()
            except CoditectError as error:
                if not error.retryable and self.closed.is_set():
                    return None
                await asyncio.sleep(PAUSE_SECONDS)

    async def keyed(self, key: str, ask: Callable[[], Awaitable[T]], named: Callable[[T], str]) -> T | None:
        """Send a request under one idempotency key until answered, at random again; record answers, return the first.

        Return None after a non-retryable error once the load is closed.
        """
        self.note(Type.INVOKE, "submit", key)
        found = await self.insist(ask)
        if found is None:
            self.note(Type.INFO, "submit", key)
            return None
        self.note(Type.OK, "submit", key, run=named(found))
        if self.random.random() < self.pace.asked_again:
            again = await self.insist(ask)
            if again is not None:
                self.note(Type.OK, "submit", key, run=named(again))
        return found

    async def noted(self, f: str, key: str, ask: Callable[[], Awaitable[object]]) -> None:
        """Send a request once, and record its outcome, which counts as unknown after any error, even a refusal."""
        self.note(Type.INVOKE, f, key)
        try:
            await ask()
        except CoditectError:
            self.note(Type.INFO, f, key)
        else:
            self.note(Type.OK, f, key)

    async def _signal(self, run: WorkflowRun, token: str) -> None:
        """Send a signal until it is answered, and sometimes again under the same id; an ended workflow takes none."""
        repeated = self.random.random() < self.pace.signaled_again
        while True:
            self.note(Type.INVOKE, "signal", run.id, token=token)
            try:
                await run.signal(SIGNAL, token, id=token)
            except InputError:
                self.note(Type.FAIL, "signal", run.id, token=token)
                return
            except CoditectError:
                self.note(Type.INFO, "signal", run.id, token=token)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self.note(Type.OK, "signal", run.id, token=token)
            if not repeated:
                return
            repeated = False

    async def answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Repeat a request until it succeeds, also after non-retryable errors and once the load is closed."""
        while True:
            with suppress(CoditectError):
                return await ask()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _pause(self, run: WorkflowRun) -> None:
        await self.soon()
        await self.noted("pause", run.id, run.pause)  # or it has ended
        await self.soon()
        self._work.create_task(self._go_on(run))

    async def _go_on(self, run: WorkflowRun) -> None:
        """Resume a workflow whenever it is paused, until it has ended, since a late pause may still arrive."""
        while True:
            with suppress(CoditectError):
                state = await run.state()
                if state.terminal:
                    return
                if state is WorkflowState.PAUSED:
                    await self.noted("resume", run.id, run.resume)
            await asyncio.sleep(4 * PAUSE_SECONDS)

    async def _end_of_run(self, run: WorkflowRun, *, redriven: bool) -> WorkflowState | None:
        """Wait for a workflow's end, if `redriven` redrive its broken node, and return the state; None after an error.

        A compensation that failed is done again.
        """
        for _ in range(MOST_REDRIVES):
            try:
                state = await run.wait(timeout=self.pace.wait_seconds)
            except CoditectError:
                return None
            if state is WorkflowState.COMPENSATION_FAILED:
                await self.noted("redrive", f"{run.id}:{UNDO}", run.resume)
            elif state is WorkflowState.COMPLETED or not redriven:
                break
            else:
                await self._redrive(run)
        return state

    async def _redrive(self, run: WorkflowRun) -> None:
        """Redrive the workflow's broken node with an input that succeeds."""
        key = f"{run.id}:{BROKEN}"
        self.note(Type.INVOKE, "redrive", key)
        try:
            await run.redrive(BROKEN, self.shapes.work())
        except CoditectError:
            self.note(Type.INFO, "redrive", key)
            await asyncio.sleep(4 * PAUSE_SECONDS)
        else:
            self.note(Type.OK, "redrive", key)
