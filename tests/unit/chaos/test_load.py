"""What the load says of its work: that it ended, that it is not known, and what it did to it on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from chaos.history import Type
from chaos.load.generators import BROKEN, FEW_ATTEMPTS, LONGEST_MILLISECONDS, Generators
from chaos.load.pace import Pace
from chaos.load.parts.poison import DEAF, SUICIDE, poison
from chaos.load.waves import URGENT
from chaos.load.work import MOST_ATTEMPTS
from chaos.load.workload import ChaosLoad
from coditect.client.client import Client
from coditect.client.options import Options
from coditect.errors import BrokerUnavailable, ResultTimeout
from coditect.model.capability import Priority
from coditect.model.result import Status
from coditect.workflow.states import WorkflowState
from tests.support import eventually

PACE = Pace(workflows=1, tasks=0, width=2, milliseconds=(0, 0), canceled=1.0, wait_seconds=7.0)
LEFT_ALONE = replace(PACE, canceled=0.0, paused=0.0)


class FakeRun:
    """A run that cannot be canceled, and ends or does not; or first one way and then another."""

    id = "w"

    def __init__(self, *ends: WorkflowState | None) -> None:
        self._ends = list(ends)
        self.waited: list[float] = []
        self.redriven: list[tuple[str, dict[str, Any]]] = []
        self.resumed = 0

    async def cancel(self, *, reason: str) -> None:
        raise BrokerUnavailable("Nobody answers")

    async def wait(self, *, timeout: float) -> WorkflowState:
        self.waited.append(timeout)
        end = self._ends.pop(0)
        if end is None:
            raise ResultTimeout("It did not end in time")
        return end

    async def pause(self) -> None:
        raise BrokerUnavailable("Nobody answers, and it is paused all the same")

    async def state(self) -> WorkflowState:
        return WorkflowState.COMPLETED if self.resumed else WorkflowState.PAUSED

    async def resume(self) -> None:
        self.resumed += 1

    async def redrive(self, node: str, value: dict[str, Any]) -> None:
        self.redriven.append((node, value))


class FakeHandle:
    """Of a task that has its outcome once it is let."""

    task_id = "t"
    run = FakeRun()

    def __init__(self) -> None:
        self.let = asyncio.Event()

    async def outcome(self, *, timeout: float) -> SimpleNamespace:
        await self.let.wait()
        return SimpleNamespace(status=Status.COMPLETED, failure=None)


class FakeClient:
    """Accepts everything as one run, or one task."""

    def __init__(self, run: FakeRun, handle: FakeHandle | None = None) -> None:
        self._run = run
        self._handle = handle

    async def start(self, _: Any, value: Any, *, idempotency_key: str) -> FakeRun:
        return self._run

    async def submit(self, *given: Any, **options: Any) -> FakeHandle | None:
        self.given = given
        return self._handle


class Notes:
    """What was noted."""

    def __init__(self) -> None:
        self.lines: list[tuple[Type, str, str]] = []
        self.facts: dict[str, Any] = {}

    def __call__(self, type_: Type, f: str, key: str, **val: object) -> None:
        self.lines.append((type_, f, key))
        self.facts |= val

    def about(self, f: str) -> list[Type]:
        return [type_ for type_, what, _ in self.lines if what == f]


async def noted(run: FakeRun, pace: Pace = PACE) -> Notes:
    notes = Notes()
    load = ChaosLoad(cast(Client, FakeClient(run)), notes, Random(1), pace)
    async with load._work:
        await load.workflow()
    return notes


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes one shape the only one."""
    return lambda shape: monkeypatch.setattr(Generators, "drawn", shape)


async def test_a_cancel_that_nobody_answers_is_no_end(only: Any) -> None:
    only(Generators.fan)
    run = FakeRun(WorkflowState.CANCELED)

    notes = await noted(run)

    assert [f for _, f, _ in notes.lines] == ["submit", "submit", "accept", "accept", "cancel", "cancel", "end"]
    assert (notes.about("cancel"), notes.about("end")) == ([Type.INVOKE, Type.INFO], [Type.OK])
    assert (run.waited, notes.facts["ends"]) == ([7.0], ("canceled", "completed"))


async def test_what_does_not_end_in_time_has_no_known_end() -> None:
    assert (await noted(FakeRun(None))).lines[-1] == (Type.INFO, "end", "w")


async def test_what_fails_for_good_is_redriven_with_another_input_until_it_completes(only: Any) -> None:
    only(Generators.broken)
    run = FakeRun(WorkflowState.FAILED, WorkflowState.COMPLETED)

    notes = await noted(run)  # it is not canceled: then nobody would redrive it

    assert [(node, value.get("broken")) for node, value in run.redriven] == [(BROKEN, None)]
    assert notes.lines[4:] == [
        (Type.INVOKE, "redrive", f"w:{BROKEN}"),
        (Type.OK, "redrive", f"w:{BROKEN}"),
        (Type.OK, "end", "w"),
    ]
    assert (notes.facts["ends"], notes.facts["state"]) == (("completed",), "completed")


async def test_what_is_not_meant_to_fail_is_not_redriven(only: Any) -> None:
    only(Generators.chain)
    run = FakeRun(WorkflowState.FAILED)

    notes = await noted(run, LEFT_ALONE)

    assert (run.redriven, notes.facts["state"], notes.facts["ends"]) == ([], "failed", ("completed",))


async def test_paused_workflow_is_resumed_also_when_nobody_answered_the_pause(only: Any) -> None:
    only(Generators.fan)
    run = FakeRun(WorkflowState.COMPLETED)

    notes = await noted(run, replace(LEFT_ALONE, paused=1.0))

    assert (run.resumed, notes.about("pause"), notes.about("resume")) == (
        1,
        [Type.INVOKE, Type.INFO],
        [Type.INVOKE, Type.OK],
    )
    assert notes.facts["priorities"] == {}  # it waits on purpose, whatever its priority


async def task(pace: Pace) -> tuple[Notes, Sequence[Type]]:
    """What was noted of a task, and what of its end by the time that the next could be begun."""
    notes, handle = Notes(), FakeHandle()
    load = ChaosLoad(cast(Client, FakeClient(FakeRun(), handle)), notes, Random(1), pace)
    async with load._work:
        await load.task()
        early = notes.about("end")
        handle.let.set()
    return notes, early


async def test_task_is_noted_as_the_direct_durable_or_hopeless_one_that_it_is() -> None:
    notes, early = await task(replace(LEFT_ALONE, durable=0.0, patience_seconds=0.0))

    assert (early, notes.lines[-1], notes.facts["state"]) == ([], (Type.OK, "end", "t"), "completed")
    assert notes.facts["priority"] in ("p0", "p1", "p2")
    assert "calls" not in notes.facts

    notes, _ = await task(replace(LEFT_ALONE, durable=1.0, patience_seconds=0.0))

    assert notes.lines[2] == (Type.INVOKE, "accept", "w")
    assert (notes.facts["nodes"], notes.facts["most"]) == ({"task": []}, MOST_ATTEMPTS)

    notes, _ = await task(replace(LEFT_ALONE, durable=0.0, hopeless=1.0, patience_seconds=0.0))

    assert (notes.facts["ends"], notes.facts["most"]) == (("failed",), FEW_ATTEMPTS)


async def test_key_that_is_asked_for_again_is_noted_with_what_it_means_each_time() -> None:
    notes = await noted(FakeRun(WorkflowState.CANCELED), replace(PACE, asked_again=1.0))

    assert (notes.about("submit"), notes.facts["run"]) == ([Type.INVOKE, Type.OK, Type.OK], "w")


@pytest.mark.parametrize(("hopeless", "least", "most"), [(0.0, 7, LONGEST_MILLISECONDS), (1.0, 0, 7)])
async def test_direct_task_may_be_long_unless_it_is_to_fail(hopeless: float, least: int, most: int) -> None:
    client = FakeClient(FakeRun(), FakeHandle())
    pace = replace(LEFT_ALONE, milliseconds=(1, 7), long=1.0, durable=0.0, hopeless=hopeless)
    load = ChaosLoad(cast(Client, client), Notes(), Random(1), pace)

    ending = await load._begin_direct(Priority.P1)

    assert ending is not None
    ending.close()
    assert least <= client.given[1]["milliseconds"] <= most


@pytest.mark.parametrize("ended", [True, False])
async def test_wave_of_calls_waits_for_the_wave_before_the_last(ended: bool) -> None:
    notes, handle = Notes(), FakeHandle()
    pace = replace(LEFT_ALONE, calls=2, patience_seconds=0.0, soon_milliseconds=(0, 0))
    load = ChaosLoad(cast(Client, FakeClient(FakeRun(), handle)), notes, Random(1), pace)
    if ended:
        handle.let.set()

    async def wave_after_wave() -> None:
        for _ in range(3):
            await load.calls()

    async with load._work:
        waves = asyncio.create_task(wave_after_wave())
        await eventually(lambda: len(notes.about("accept")) >= 2 * 2 * 2)
        await asyncio.wait([waves], timeout=0.05)
        begun = len(notes.about("accept")) // 4
        handle.let.set()
        await waves

    assert begun == (3 if ended else 2)
    assert notes.facts["calls"] is True


@pytest.mark.parametrize("capability", [SUICIDE, DEAF])
async def test_poison_that_may_be_lost_does_not_keep_the_next_from_beginning(capability: str) -> None:
    notes, handle = Notes(), FakeHandle()
    pace = replace(LEFT_ALONE, patience_seconds=0.0, soon_milliseconds=(0, 0))
    load = ChaosLoad(cast(Client, FakeClient(FakeRun(), handle)), notes, Random(1), pace)
    async with load._work:
        await poison(capability, load)
        early = notes.about("end")
        handle.let.set()

    assert (early, notes.lines[-1], notes.facts["poison"]) == ([], (Type.OK, "end", "t"), capability)


async def test_parents_of_a_wave_come_with_urgent_tasks_and_await_a_child_each(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[dict[str, Any], Priority]] = []

    async def submit(work: dict[str, Any], options: Options, *_: Any) -> None:
        asked.append((work, options.priority))

    load = ChaosLoad(cast(Client, None), Notes(), Random(1), replace(LEFT_ALONE, parents=3))
    monkeypatch.setattr(load, "_submit", submit)
    monkeypatch.setattr(asyncio, "sleep", AsyncMock())

    await load.family()

    assert [bool(work.get("child")) for work, _ in asked] == [True] * 3 + [False] * URGENT
    assert [priority for _, priority in asked] == [Priority.P1] * 3 + [Priority.P0] * URGENT


EVERY_SHAPE = [
    Generators.layers, Generators.fan, Generators.chain, Generators.gate, Generators.spread, Generators.broken,
    Generators.choice, Generators.hopeless, Generators.wide, Generators.saga,
]  # fmt: skip


@pytest.mark.parametrize("shape", EVERY_SHAPE)
def test_acceptance_names_every_task_that_is_executed_with_its_priority(shape: Any) -> None:
    shapes = Generators(Random(1), replace(PACE, elements=5))

    told = shapes.told(shape(shapes).definition())

    assert {before for after in told["nodes"].values() for before in after} <= set(told["nodes"])
    assert set(told["nodes"]) - set(told["priorities"]) <= {"gate"}
    assert set(told["inputs"]) == set(told["priorities"])
    assert set(told["meant"]) | set(told["few"]) <= set(told["nodes"])
