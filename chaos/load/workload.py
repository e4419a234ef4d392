"""The load of a chaos run: random workflows, durable tasks and direct tasks, started until the load is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from chaos.history import Type
from chaos.load.dependency import CALL, CALL_ATTEMPTS
from chaos.load.generators import (
    EVERY_SECONDS,
    FEW_ATTEMPTS,
)
from chaos.load.parts.table import PARTS
from chaos.load.waves import HANDED, KEY_SECONDS, PARENT, RESOURCES, UNDER_LOCK, URGENT
from chaos.load.work import CAPABILITY, KEYED
from chaos.load.work import MOST_ATTEMPTS as TASK_ATTEMPTS
from chaos.load.workflows import COMPLETES, PAUSE_SECONDS, Ending, WorkflowLoad
from coditect import CoditectError, From, Workflow
from coditect.client.handle import DURABLE_NODE as DURABLE
from coditect.client.handle import Handle
from coditect.client.options import Options
from coditect.errors import InputError, ResultTimeout
from coditect.model.capability import Priority

T = TypeVar("T")
_CALL = {"milliseconds": 20}


class ChaosLoad(WorkflowLoad):
    """The load of a run, which starts random workflows and tasks and records how each ends."""

    _calling: Collection[asyncio.Task[None]] = ()

    async def keep_coming(self) -> None:
        """Start new work whenever some ends until the load is closed, grant approvals, and return at the last end."""
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer_approvals())
            async with self._work as work:
                for one, many in self._parts():
                    for _ in range(many):
                        work.create_task(self._again(one))
            answering.cancel()

    def _parts(self) -> Sequence[tuple[Callable[[], Awaitable[None]], int]]:
        """Return for each kind of work the function that runs it once, and how many of its calls go on side by side."""
        pace = self.pace
        return (
            (self.workflow, pace.workflows),
            (self.task, pace.tasks),
            (self.family, bool(pace.parents)),
            (self.long_map, bool(pace.elements)),
            (partial(self.taking_turns, "lock"), bool(pace.locks)),
            (partial(self.taking_turns, "key"), bool(pace.keyed)),
            (self.handing_off, bool(pace.handed)),
            (self.calls, bool(pace.calls)),
            (self.policed, pace.policed),
            (self.schedule, pace.schedules),
            *((partial(PARTS[name].play, self), many) for name, many in pace.parts.items()),
        )

    async def _again(self, one: Callable[[], Awaitable[None]]) -> None:
        while not self.closed.is_set():
            await one()

    # -- tasks ------------------------------------------------------------------------------------------

    async def task(self) -> None:
        """Run one direct or durable task; return at its end, or 10 s after its acceptance, since it may be lost."""
        priority = self.shapes.priority()
        durable = self.random.random() < self.pace.durable
        ending = await (self._begin_durable(priority) if durable else self._begin_direct(priority))
        await self.ends_of([ending])

    async def family(self) -> None:
        """Run parent tasks whose child tasks all end at the same time, and P0 tasks while the parents resume."""
        wave = [await self._submit(dict(PARENT), Options(priority=Priority.P1)) for _ in range(self.pace.parents)]
        await asyncio.sleep(PARENT["child"] / 1000)
        for _ in range(URGENT):
            wave.append(await self._submit({"milliseconds": 1}, Options(priority=Priority.P0)))
            await asyncio.sleep(PARENT["milliseconds"] / 4000)
        await self.ends_of(wave)

    async def taking_turns(self, by: str) -> None:
        """Run a wave of tasks that each take one of a few locks or concurrency keys; return at their end or in 10 s."""
        many, capability = (self.pace.keyed, KEYED) if by == "key" else (self.pace.locks, CAPABILITY)
        given = [UNDER_LOCK | {by: f"chaos:{number % RESOURCES}"} for number in range(many)]
        await self.ends_of([await self._submit(one, Options(), capability=capability) for one in given])

    async def handing_off(self) -> None:
        """Run a wave of durable tasks, each offered to other agents as it runs; return at their end or after 10 s."""
        await self.ends_of([await self._begin_durable(Priority.P1, HANDED) for _ in range(self.pace.handed)])

    async def calls(self) -> None:
        """Run a wave of tasks that each call a mostly failing dependency; return at their end or after 10 s.

        The wave before must have ended, too: what a dependency does not let through would grow without end.
        """
        options, before = Options(max_attempts=CALL_ATTEMPTS), self._calling
        wave = [await self._submit(_CALL, options, capability=CALL) for _ in range(self.pace.calls)]
        self._calling = await self.ends_of(wave)
        if before:
            await asyncio.wait(before)
        await self.soon()

    async def _begin_direct(self, priority: Priority) -> Ending:
        work, options = self.shapes.direct_work(), Options(priority=priority)
        if self.random.random() < self.pace.hopeless:
            work = {"milliseconds": min(work["milliseconds"], self.pace.milliseconds[1]), "fails": 99}
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
            handle = await self.client.submit(capability, given, options=options)
        except CoditectError:
            await asyncio.sleep(PAUSE_SECONDS)  # refused, or unknown: then nobody was promised anything
            return None
        key = handle.task_id
        waits = capability == KEYED  # for its key
        facts = {} if waits else {"priority": options.priority.value}
        self.accepted(key, ends=ends, most=most, **facts, **({"calls": True} if capability == CALL else {}))
        longest = self.pace.task_seconds + KEY_SECONDS * waits + TASK_ATTEMPTS * work["milliseconds"] / 1000
        return self._end_of(key, handle, longest)

    async def _begin_durable(self, priority: Priority, given: dict[str, Any] | None = None) -> Ending:
        """Submit a durable task until it is accepted, and return a coroutine that awaits its end and records the state.

        All requests have one idempotency key. None after a non-retryable error once the load is closed.
        """
        key, work = self.key(), given or self.shapes.work()
        options = Options(priority=priority, max_attempts=TASK_ATTEMPTS)  # the ledger does not know the capability's
        handle = await self.keyed(
            key,
            lambda: self.client.submit(CAPABILITY, work, idempotency_key=key, options=options),
            lambda handle: handle.run.id,
        )
        if handle is None:
            return None
        levels = {DURABLE: priority.value}
        facts = {"nodes": {DURABLE: []}, "priorities": levels, "levels": levels}
        self.accepted(handle.run.id, ends=COMPLETES, most=TASK_ATTEMPTS, **facts)
        return self._end_of(handle.run.id, handle, self.pace.wait_seconds)

    async def _end_of(self, key: str, handle: Handle, seconds: float) -> None:
        try:
            outcome = await handle.outcome(timeout=seconds)
        except CoditectError:
            self.over(key, None)
        else:
            self.over(key, outcome.status.value)

    # -- workflows --------------------------------------------------------------------------------------

    async def long_map(self) -> None:
        """Run one workflow with a map over `Pace.elements` elements."""
        await self.workflow(self.shapes.wide(), [*range(self.pace.elements)])

    async def policed(self) -> None:
        """Run one workflow whose nodes an approval policy decides about."""
        await self.workflow(self.shapes.policed())

    # -- schedules --------------------------------------------------------------------------------------

    async def schedule(self) -> None:
        """Create a schedule, let it tick for some seconds and once more, pause it, and wait until its runs ended."""
        name = self.key()
        flow, schedules = self.shapes.ticking(name), self.client.schedules
        self.note(Type.INVOKE, "schedule", name)
        await self.answered(lambda: self._made(name, flow))
        with suppress(TimeoutError):
            async with asyncio.timeout(self.random.uniform(*self.pace.ticking_seconds)):
                await self.closed.wait()
        ticked = await self.answered(lambda: schedules.get(name))
        await self.answered(lambda: self._ticked(name, more_than=ticked["runs"]))
        await self.answered(lambda: schedules.pause(name))
        self.note(Type.OK, "schedule", name)
        facts = self.shapes.told(flow.definition()) | {"schedule": name}
        for run in await self.answered(lambda: self._runs_of(name)):
            self.accepted(run, ends=COMPLETES, **facts)
            await self.end_of(self.client.workflows.get(run))

    async def _made(self, schedule: str, flow: Workflow) -> None:
        """Create a schedule, unless an earlier request that got no answer has created it already."""
        with suppress(InputError):
            await self.client.schedules.create(
                schedule, flow, From("tick"), every=f"{EVERY_SECONDS}s", catch_up="all", most_missed=1_000
            )

    async def _ticked(self, schedule: str, *, more_than: int) -> None:
        shown = await self.client.schedules.get(schedule)
        if shown["runs"] <= more_than:
            raise ResultTimeout("The schedule has not ticked yet")

    async def _runs_of(self, schedule: str) -> list[str]:
        return [row.workflow async for row in self.client.workflows.list(name=schedule)]

    async def _answer_approvals(self) -> None:
        while True:
            with suppress(CoditectError):
                async for row in self.client.approvals.list(limit=100):
                    self.note(Type.INVOKE, "grant", f"{row.workflow}:{row.node}")
                    await self.client.workflows.get(row.workflow).grant(row.node, by="chaos")
                    self.note(Type.OK, "grant", f"{row.workflow}:{row.node}")
            await asyncio.sleep(4 * PAUSE_SECONDS)
