"""What a handler gives to `ctx.request`: it works as documented, or one typed error names the parameter and the fix."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as some

from coditect import Context, Priority
from coditect.agent.context import Services
from coditect.errors import InputError
from coditect.model.duration import seconds
from coditect.model.ids import AgentId, TaskId
from coditect.model.result import Outcome, Status
from coditect.model.task import Task
from tests.unit.agent.process_agent import worker
from tests.unit.agent.scene import Scene

LEVELS = {"p0": "p0", "P2": "p2", None: "p1"}
ANYTHING = some.one_of(
    some.none(),
    some.text(max_size=20),
    some.integers(),
    some.floats(),
    some.booleans(),
    some.binary(max_size=5),
    some.timedeltas(),
    some.datetimes(),
    some.lists(some.integers(), max_size=2),
    some.sampled_from([*Priority, "P0", "p2", "5m", "0s", "-1s", b"p0"]),
)


@pytest.mark.parametrize("given_", LEVELS)
@pytest.mark.parametrize("where", ["loop", "proc"])
async def test_a_text_is_taken_for_the_priority_of_a_request(scene: Scene, where: str, given_: str | None) -> None:
    client = await scene.serve(worker)

    assert await client.request(f"{where}.ask.for", {"priority": given_}, str) == LEVELS[given_]


@pytest.mark.parametrize(
    ("how", "refused"),
    [
        ({"priority": "p9"}, ["priority", "one of p0, p1, p2"]),
        ({"timeout": "soon"}, ["timeout", "a number and a unit: 250ms, 30s, 5m, 2h or 2d; or seconds, or a timedelta"]),
    ],
)
@pytest.mark.parametrize("where", ["loop", "proc"])
async def test_a_request_that_cannot_be_meant_is_refused_where_it_stands(
    scene: Scene, where: str, how: dict[str, Any], refused: list[str]
) -> None:
    client = await scene.serve(worker)

    assert await client.request(f"{where}.ask.for", how) == refused


@dataclass
class Asked:
    """The runtime's part of a context: it keeps what it was asked for."""

    levels: list[Priority] = field(default_factory=list)
    timeouts: list[float] = field(default_factory=list)

    async def request(
        self, capability: str, body: bytes, *, ordinal: int, timeout_seconds: float, priority: Priority
    ) -> Outcome:
        self.levels.append(priority)
        self.timeouts.append(timeout_seconds)
        return Outcome(Status.COMPLETED, b"null", "child", None)

    def progress(self, share: float, note: str) -> None: ...

    def report(self, share: float, note: str) -> None: ...

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None: ...


@given(name=some.sampled_from(["priority", "timeout"]), asked=ANYTHING)
def test_an_argument_works_as_documented_or_its_error_names_it_before_anything_is_asked(name: str, asked: Any) -> None:
    services = Asked()
    context = Context(
        Task("a.parent", Priority.P1, b"null"), TaskId("parent"), AgentId("agent"), cast("Services", services)
    )

    try:
        asyncio.run(context.request("a.child", **{name: asked}))
    except InputError as error:
        assert error.facts["parameter"] == name
        assert error.facts["fix"]
        assert services == Asked()
    else:
        assert services.levels == [Priority(str(asked or "p1").lower()) if name == "priority" else Priority.P1]
        assert services.timeouts == [seconds(asked) if name == "timeout" else 300.0]
