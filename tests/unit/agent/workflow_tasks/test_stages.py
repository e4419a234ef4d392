"""What the stage of a workflow task decides beside the run of its handler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from coditect.agent.execution import Execution
from coditect.agent.owners import Stage, TaskHeartbeats
from coditect.aio.clock import SystemClock
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.task import Owner, Task


@pytest.mark.parametrize(("stage", "acked"), [(Stage.GRANTED, True), (Stage.GIVEN_BACK, False)])
async def test_long_task_that_is_being_given_back_keeps_its_delivery(stage: Stage, acked: bool) -> None:
    """Its owner may not have heard yet that it must start the task again."""
    task = Task("work.do", Priority.P1, b"", owner=Owner("w", "node", "0", 1), publication=1)
    execution = Execution(task, cast(Any, SimpleNamespace(ack=lambda: None)), None)
    heartbeats = TaskHeartbeats(cast(Any, None), cast(Any, None), SystemClock(), agent_id=AgentId("a"))
    heartbeats.granted(execution)
    heartbeats.stages[execution] = stage

    await heartbeats.acked_early(execution)

    assert execution.acked_early is acked
    heartbeats.ended(execution)
