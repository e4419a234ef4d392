"""The load of a chaos run: random workflows, durable tasks and direct tasks, started until the load is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any, TypeAlias, TypeVar

from coditect import CoditectError, From, Workflow
from coditect.client.client import Client
from coditect.client.durable import NODE as DURABLE
from coditect.client.handle import Handle
from coditect.client.options import Options
from coditect.client.workflow_run import Run
from coditect.errors import InputError, ResultTimeout
from coditect.model.capability import Priority
from coditect.workflow.states import WorkflowState
from dispatcher.chaos.load.dependency import CALL, CALL_ATTEMPTS
from dispatcher.chaos.load.generators import (
    BROKEN,
    EVERY_SECONDS,
    FEW_ATTEMPTS,
    SIGNAL,
    Generators,
    Pace,
    is_limited,
)
from dispatcher.chaos.load.work import CAPABILITY, KEYED, UNDO
from dispatcher.chaos.load.work import MOST_ATTEMPTS as TASK_ATTEMPTS
from dispatcher.witness.history import Note, Type

T = TypeVar("T")
Ending: TypeAlias = Coroutine[Any, Any, None] | None
"""A coroutine that waits for the end of started work and records it; None when no work was started."""
PAUSE_SECONDS = 0.25
COMPLETES = ("completed",)
UNDONE = ("compensated",)
CANCELED = ("canceled", "completed")
"""The states in which a workflow may end that the load cancels."""
MOST_REDRIVES = 20
"""The most redrives of one workflow, after which its state counts as final."""
PARENT = {"milliseconds": 200, "child": 2_000}
"""The input of a task that awaits a child task and then works on."""
RESOURCES = 3
"""The number of different locks that the tasks of a wave take, and of different keys that they have."""
KEY_SECONDS = 90.0
"""How much longer a task with a key may take: a holder's key is free a minute after nobody could evict the dead."""
_CALL = {"milliseconds": 20}
UNDER_LOCK = {"milliseconds": 150}
"""The input of a task that works under a lock."""
URGENT = 8
"""The number of P0 tasks that the load submits while the tasks of a wave resume after their children."""


class ChaosLoad:
    """The load of a run, which starts random workflows and tasks and records how each ends."""

    def __init__(self, client: Client, note: Note, random: Random, pace: Pace) -> None:
        self._client = client
        self._note = note
        self._random = random
        self._pace = pace
        self._shapes = Generators(random, pace)
        self._work = asyncio.TaskGroup()
        self._number = 0
        self.closed = asyncio.Event()
        """The event that stops the start of new work."""
        self.begun = self.ended = 0

    async def keep_coming(self) -> None:
        """Start new work whenever some ends, until the load is closed; return when all work has ended."""
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer_approvals())
            async with self._work as work:
                for one, many in self._parts():
                    for _ in range(many):
                        work.create_task(self._again(one))
            answering.cancel()

    def _parts(self) -> Sequence[tuple[Callable[[], Awaitable[None]], int]]:
        """Return the parts of the load, each with the number of them that are under way at once."""
        pace = self._pace
        return (
            (self.workflow, pace.workflows),
            (self.task, pace.tasks),
            (self.family, bool(pace.parents)),
            (self.long_map, bool(pace.elements)),
            (partial(self.taking_turns, "lock"), bool(pace.locks)),
            (partial(self.taking_turns, "key"), bool(pace.keyed)),
            (self.calls, bool(pace.calls)),
            (self.policed, pace.policed),
            (self.schedule, pace.schedules),
        )

    async def _again(self, one: Callable[[], Awaitable[None]]) -> None:
        while not self.closed.is_set():
            await one()

    def _accepted(self, key: str, **facts: object) -> None:
        self._note(Type.INVOKE, "accept", key, **facts)
        self._note(Type.OK, "accept", key)
        self.begun += 1

    def _over(self, key: str, state: str | None) -> None:
        """Record the state in which work ended for the client; None when its end is unknown."""
        if state is None:
            self._note(Type.INFO, "end", key)
            return
        self._note(Type.OK, "end", key, state=state)
        self.ended += 1

    def _key(self) -> str:
        self._number += 1
        return f"chaos-{self._number}-{self._random.getrandbits(32):x}"

    # -- tasks ------------------------------------------------------------------------------------------

    async def task(self) -> None:
        """Run one direct or durable task; return at its end, or after `patience_seconds`, as a task may be lost."""
        priority = self._shapes.priority()
        durable = self._random.random() < self._pace.durable
        ending = await (self._begin_durable(priority) if durable else self._begin_direct(priority))
        if ending is not None:
            await asyncio.wait([self._work.create_task(ending)], timeout=self._pace.patience_seconds)

    async def family(self) -> None:
        """Run parent tasks whose child tasks all end at the same time, and P0 tasks while the parents resume."""
        wave = [await self._submit(dict(PARENT), Options(priority=Priority.P1)) for _ in range(self._pace.parents)]
        await asyncio.sleep(PARENT["child"] / 1000)
        for _ in range(URGENT):
            wave.append(await self._submit({"milliseconds": 1}, Options(priority=Priority.P0)))
            await asyncio.sleep(PARENT["milliseconds"] / 4000)
        await self._ends_of(wave)

    async def taking_turns(self, by: str) -> None:
        """Run a wave of tasks that each take one of a few locks, or have one of a few keys; return at their end."""
        many, capability = (self._pace.keyed, KEYED) if by == "key" else (self._pace.locks, CAPABILITY)
        given = [UNDER_LOCK | {by: f"chaos:{number % RESOURCES}"} for number in range(many)]
        await self._ends_of([await self._submit(one, Options(), capability=capability) for one in given])

    async def calls(self) -> None:
        """Run a wave of tasks that each call the dependency, which is down most of the time; return at their end."""
        options = Options(max_attempts=CALL_ATTEMPTS)
        await self._ends_of([await self._submit(_CALL, options, capability=CALL) for _ in range(self._pace.calls)])
        await self._soon()

    async def _ends_of(self, wave: Sequence[Ending]) -> None:
        """Wait for the ends of a wave of tasks, but not longer than `patience_seconds`."""
        ends = [self._work.create_task(one) for one in wave if one is not None]
        if ends:
            await asyncio.wait(ends, timeout=self._pace.patience_seconds)

    async def _begin_direct(self, priority: Priority) -> Ending:
        work, options = self._shapes.direct_work(), Options(priority=priority)
        if self._random.random() < self._pace.hopeless:
            work = {"milliseconds": min(work["milliseconds"], self._pace.milliseconds[1]), "fails": 99}
            return await self._submit(work, replace(options, max_attempts=FEW_ATTEMPTS), ends=("failed",))
        return await self._submit(work, options)

    async def _submit(
        self,
        work: dict[str, Any],
        options: Options,
        ends: tuple[str, ...] = COMPLETES,
        *,
        capability: str = CAPABILITY,
    ) -> Ending:
        most = options.max_attempts or TASK_ATTEMPTS
        given = work["milliseconds"] if capability == CALL else work
        try:
            handle = await self._client.submit(capability, given, options=options)
        except CoditectError:
            await asyncio.sleep(PAUSE_SECONDS)  # refused, or unknown: then nobody was promised anything
            return None
        key = handle.task_id
        waits = capability == KEYED  # for its key
        self._accepted(key, ends=ends, most=most, **({} if waits else {"priority": options.priority.value}))
        longest = self._pace.task_seconds + KEY_SECONDS * waits + TASK_ATTEMPTS * work["milliseconds"] / 1000
        return self._end_of(key, handle, longest)

    async def _begin_durable(self, priority: Priority) -> Ending:
        """Submit a durable task under one idempotency key until it is accepted."""
        key, work = self._key(), self._shapes.work()
        options = Options(priority=priority, max_attempts=TASK_ATTEMPTS)  # the ledger does not know the capability's
        handle = await self._keyed(
            key,
            lambda: self._client.submit_durable(CAPABILITY, work, key=key, options=options),
            lambda handle: handle.run.id,
        )
        if handle is None:
            return None
        levels = {DURABLE: priority.value}
        facts = {"nodes": {DURABLE: []}, "priorities": levels, "levels": levels}
        self._accepted(handle.run.id, ends=COMPLETES, most=TASK_ATTEMPTS, **facts)
        return self._end_of(handle.run.id, handle, self._pace.wait_seconds)

    async def _end_of(self, key: str, handle: Handle, seconds: float) -> None:
        try:
            outcome = await handle.outcome(timeout=seconds)
        except CoditectError:
            self._over(key, None)
        else:
            self._over(key, outcome.status.value)

    # -- workflows --------------------------------------------------------------------------------------

    async def long_map(self) -> None:
        """Run one workflow with a map over `Pace.elements` elements."""
        await self.workflow(self._shapes.wide(), [*range(self._pace.elements)])

    async def policed(self) -> None:
        """Run one workflow whose nodes an approval policy decides about."""
        await self.workflow(self._shapes.policed())

    async def workflow(self, drawn: Workflow | None = None, value: object = None) -> None:
        """Run one workflow to its end, submitted under one idempotency key until it is accepted."""
        flow = drawn or self._shapes.drawn()
        definition, key = flow.definition(), self._key()
        run = await self._keyed(key, lambda: self._client.start(definition, value, key=key), lambda run: run.id)
        if run is None:
            return
        chance, broken = self._random.random(), any(node.name == BROKEN for node in definition.nodes)
        canceled = chance < self._pace.canceled and not broken
        paused = not canceled and not broken and chance < self._pace.canceled + self._pace.paused
        facts = self._shapes.told(definition) | ({"priorities": {}} if paused else {})  # it waits on purpose
        ends = (CANCELED if canceled else ()) + (UNDONE if facts["undo"] else () if canceled else COMPLETES)
        if is_limited(definition):
            ends, facts = (*ends, "failed"), facts | {"meant": {}}
        self._accepted(run.id, ends=ends, **facts)
        if canceled:
            await self._soon()
            await self._noted("cancel", run.id, lambda: run.cancel(reason="chaos"))  # it ends either way
        elif paused:
            await self._pause(run)
        for number, node in enumerate(facts["signals"]):
            if number:  # the first comes before its node waits for it
                await self._soon()
            await self._signal(run, f"{run.id}:{node}")
        state = await self._end_of_run(run, redriven=broken)
        self._over(run.id, None if state is None else state.value)

    async def _soon(self) -> None:
        await asyncio.sleep(self._random.randint(*self._pace.soon_milliseconds) / 1000)

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Repeat a request until it is answered; return None when it cannot succeed and the load is closed."""
        while True:
            try:
                return await ask()
            except CoditectError as error:
                if not error.retryable and self.closed.is_set():
                    return None
                await asyncio.sleep(PAUSE_SECONDS)

    async def _keyed(self, key: str, ask: Callable[[], Awaitable[T]], named: Callable[[T], str]) -> T | None:
        """Send a request under an idempotency key until answered, sometimes repeat it, and record all answers."""
        self._note(Type.INVOKE, "submit", key)
        found = await self._insist(ask)
        if found is None:
            self._note(Type.INFO, "submit", key)
            return None
        self._note(Type.OK, "submit", key, run=named(found))
        if self._random.random() < self._pace.asked_again:
            again = await self._insist(ask)
            if again is not None:
                self._note(Type.OK, "submit", key, run=named(again))
        return found

    async def _noted(self, f: str, key: str, ask: Callable[[], Awaitable[object]]) -> None:
        """Send a request once, and record its outcome, which is unknown when no answer came."""
        self._note(Type.INVOKE, f, key)
        try:
            await ask()
        except CoditectError:
            self._note(Type.INFO, f, key)
        else:
            self._note(Type.OK, f, key)

    async def _signal(self, run: Run, token: str) -> None:
        """Send a signal until it is answered, and sometimes again under the same id; an ended workflow takes none."""
        repeated = self._random.random() < self._pace.signaled_again
        while True:
            self._note(Type.INVOKE, "signal", run.id, token=token)
            try:
                await run.signal(SIGNAL, token, id=token)
            except InputError:
                self._note(Type.FAIL, "signal", run.id, token=token)
                return
            except CoditectError:
                self._note(Type.INFO, "signal", run.id, token=token)
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._note(Type.OK, "signal", run.id, token=token)
            if not repeated:
                return
            repeated = False

    # -- schedules --------------------------------------------------------------------------------------

    async def schedule(self) -> None:
        """Let a schedule tick for some seconds and once more, pause it, and wait for the ends of its runs."""
        name = self._key()
        flow, schedules = self._shapes.ticking(name), self._client.schedules
        self._note(Type.INVOKE, "schedule", name)
        await self._answered(lambda: self._made(name, flow))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(*self._pace.ticking_seconds)):
                await self.closed.wait()
        ticked = await self._answered(lambda: schedules.show(name))
        await self._answered(lambda: self._ticked(name, more_than=ticked["runs"]))
        await self._answered(lambda: schedules.pause(name))
        self._note(Type.OK, "schedule", name)
        facts = self._shapes.told(flow.definition()) | {"schedule": name}
        for run in await self._answered(lambda: self._runs_of(name)):
            self._accepted(run, ends=COMPLETES, **facts)
            state = await self._end_of_run(self._client.run(run), redriven=False)
            self._over(run, None if state is None else state.value)

    async def _made(self, schedule: str, flow: Workflow) -> None:
        """Make a schedule, unless an earlier request did so without an answer."""
        with suppress(InputError):
            await self._client.schedules.create(
                schedule, flow, From("tick"), every=f"{EVERY_SECONDS}s", catch_up="all", most_missed=1_000
            )

    async def _ticked(self, schedule: str, *, more_than: int) -> None:
        shown = await self._client.schedules.show(schedule)
        if shown["runs"] <= more_than:
            raise ResultTimeout("The schedule has not ticked yet")

    async def _runs_of(self, schedule: str) -> list[str]:
        return [row.workflow async for row in self._client.runs(name=schedule)]

    async def _answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Repeat a request until it succeeds."""
        while True:
            with suppress(CoditectError):
                return await ask()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _pause(self, run: Run) -> None:
        await self._soon()
        await self._noted("pause", run.id, run.pause)  # or it has ended
        await self._soon()
        self._work.create_task(self._go_on(run))

    async def _go_on(self, run: Run) -> None:
        """Resume a workflow whenever it is paused, until it has ended, since a late pause may still arrive."""
        while True:
            with suppress(CoditectError):
                state = await run.state()
                if state.terminal:
                    return
                if state is WorkflowState.PAUSED:
                    await self._noted("resume", run.id, run.resume)
            await asyncio.sleep(4 * PAUSE_SECONDS)

    async def _end_of_run(self, run: Run, *, redriven: bool) -> WorkflowState | None:
        """Return the workflow's final state, redriving its broken node; None when it does not end in time.

        A compensation that failed is done again.
        """
        for _ in range(MOST_REDRIVES):
            try:
                state = await run.wait(timeout=self._pace.wait_seconds)
            except CoditectError:
                return None
            if state is WorkflowState.COMPENSATION_FAILED:
                await self._noted("redrive", f"{run.id}:{UNDO}", run.resume)
            elif state is WorkflowState.COMPLETED or not redriven:
                break
            else:
                await self._redrive(run)
        return state

    async def _redrive(self, run: Run) -> None:
        """Redrive the workflow's broken node with an input that succeeds."""
        key = f"{run.id}:{BROKEN}"
        self._note(Type.INVOKE, "redrive", key)
        try:
            await run.redrive(BROKEN, self._shapes.work())
        except CoditectError:
            self._note(Type.INFO, "redrive", key)
            await asyncio.sleep(4 * PAUSE_SECONDS)
        else:
            self._note(Type.OK, "redrive", key)

    async def _answer_approvals(self) -> None:
        while True:
            with suppress(CoditectError):
                async for row in self._client.approvals(most=100):
                    self._note(Type.INVOKE, "grant", f"{row.workflow}:{row.node}")
                    await self._client.run(row.workflow).answer(row.node, granted=True, by="chaos")
                    self._note(Type.OK, "grant", f"{row.workflow}:{row.node}")
            await asyncio.sleep(4 * PAUSE_SECONDS)
