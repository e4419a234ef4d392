"""What the load says of its work: that it ended, or that nobody knows."""

from __future__ import annotations

from random import Random
from typing import Any, cast

from coditect.client import Client
from coditect.errors import BrokerUnavailable, ResultTimeout
from coditect.model.workflow.states import WorkflowState
from dispatcher.chaos.load import Load, Pace
from dispatcher.witness.history import Type

PACE = Pace(workflows=1, tasks=0, width=2, milliseconds=(0, 0), canceled=1.0, wait_seconds=7.0)


class FakeRun:
    """A run that cannot be canceled, and ends or does not."""

    id = "w"

    def __init__(self, end: WorkflowState | None) -> None:
        self._end = end
        self.waited: list[float] = []

    async def cancel(self, *, reason: str) -> None:
        raise BrokerUnavailable("Nobody answers")

    async def wait(self, *, timeout: float) -> WorkflowState:
        self.waited.append(timeout)
        if self._end is None:
            raise ResultTimeout("It did not end in time")
        return self._end


class FakeClient:
    """Accepts everything as one run."""

    def __init__(self, run: FakeRun) -> None:
        self._run = run

    async def start(self, _: Any, *, key: str) -> FakeRun:
        return self._run


async def noted(run: FakeRun) -> list[tuple[Type, str, str]]:
    notes: list[tuple[Type, str, str]] = []

    def note(type_: Type, f: str, key: str, **_: object) -> None:
        notes.append((type_, f, key))

    await Load(cast(Client, FakeClient(run)), note, Random(1), PACE).workflow()
    return notes


async def test_a_cancel_that_nobody_answers_is_no_end() -> None:
    run = FakeRun(WorkflowState.CANCELED)

    assert await noted(run) == [(Type.INVOKE, "accept", "w"), (Type.OK, "accept", "w"), (Type.OK, "end", "w")]
    assert run.waited == [7.0]


async def test_what_does_not_end_in_time_has_no_known_end() -> None:
    assert (await noted(FakeRun(None)))[-1] == (Type.INFO, "end", "w")
