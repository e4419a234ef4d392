"""A handler that gives up its handoff by itself, whatever has become of the handoff meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from coditect.agent.execution import Execution, ExecutionState, Interruption
from coditect.agent.services import Handoffs
from coditect.errors import ControlPlaneRequired
from coditect.model.capability import Priority
from coditect.model.task import Owner, Task
from coditect.wire.control import Verb

REQUESTED = {"handoff": "h", "ticket": "t", "state": "requested"}
GIVEN: dict[str, Any] = {"reason": "", "context": None, "timeout_seconds": 60}


class Asked:
    """Control plane and registry: a request is answered late, a handoff that is withdrawn has this end, if any."""

    name = reply_to = "owner-1"

    def __init__(self, end: dict[str, Any] | None) -> None:
        self.end, self.withdrawn = end, 0

    async def get(self, _: str) -> None: ...

    async def find(self, _: Any) -> list[Any]:
        return []

    def new_token(self) -> str:
        return "t"

    async def ask(self, verb: Verb, _: dict[str, Any], **__: Any) -> dict[str, Any]:
        if verb is Verb.HANDOFF_REQUEST:
            await asyncio.sleep(0.05)
            return REQUESTED
        self.withdrawn += 1
        if self.end is None:
            raise ControlPlaneRequired("nobody answers")
        return REQUESTED | self.end

    def expect(self, _: str) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def forget(self, _: str) -> None: ...


@pytest.mark.parametrize("while_asked", [True, False])
@pytest.mark.parametrize(
    ("end", "interruption"),
    [
        ({"state": "accepted", "by": "billing-1"}, Interruption(canceled="handed off to billing-1", handed_off=True)),
        ({"state": "withdrawn"}, None),
        (None, None),
    ],
)
async def test_the_handler_ends_if_its_task_was_accepted_and_goes_on_otherwise(
    end: dict[str, Any] | None, interruption: Interruption | None, while_asked: bool
) -> None:
    asked = cast(Any, Asked(end))
    execution = Execution(Task("a.b", Priority.P1, b"1"), cast(Any, None), None, state=ExecutionState.RUNNING)
    handoffs = Handoffs(asked, asked, asked)
    execution.work = cast(Any, asyncio.ensure_future(asyncio.sleep(0)))

    with pytest.raises(TimeoutError):
        if while_asked:
            await asyncio.wait_for(handoffs.request(execution, Owner("w", "n", "1", 1), "billing", **GIVEN), 0.01)
        else:
            await asyncio.wait_for(handoffs.wait(REQUESTED, execution), 0.01)

    assert asked.withdrawn == 1
    assert execution.interruption == interruption
