"""The workflows of a goal that is a task: the task waits for them without a slot, and a canceled task cancels them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from coditect.agent.handlers.context import Context
from coditect.client.client import Client
from coditect.client.workflow_run import Run
from coditect.errors import CoditectError
from coditect.goals.plan import MOST_PLANS
from coditect.goals.runs import ClientRuns, Planned
from coditect.model.duration import Duration
from coditect.workflow.definition import Definition
from coditect.workflow.states import TaskState

log = logging.getLogger(__name__)

_OWNER = "workflow:"


@dataclass(frozen=True, slots=True)
class TaskRun:
    """The workflow of a plan, for which the goal's task waits without a slot."""

    run: Run
    ctx: Context

    @property
    def id(self) -> str:
        """The id of the workflow that carries out the plan."""
        return self.run.id

    async def result(self, *, timeout: Duration = "1h") -> Any:
        """Wait for the workflow's end and return its value; see `Run.result`.

        A workflow that has ended already needs no wait, so a goal that went back to its queue at the bound of waits
        ends with its plan, however many other goals wait.
        """
        result = self.run.result(timeout=timeout)
        try:
            ended = (await self.run.state()).terminal
        except BaseException:
            result.close()
            raise
        return await (result if ended else self.ctx.without_slot(result))


class TaskRuns:
    """The workflows of the plans of one goal's task, which all attempts at the task share."""

    def __init__(self, client: Client, ctx: Context, planned: Planned) -> None:
        self._client, self._ctx = client, ctx
        self._runs = ClientRuns(client, ctx.task_id, planned)

    async def find(self, number: int) -> TaskRun | None:
        """Return the workflow that an earlier attempt started for a plan, or None."""
        found = await self._runs.find(number)
        return None if found is None else TaskRun(found, self._ctx)

    async def start(self, number: int, plan: Definition, goal: str) -> TaskRun:
        """Start the workflow of a plan, or return the one that an earlier attempt started."""
        return TaskRun(await self._runs.start(number, plan, goal), self._ctx)

    async def cancel(self) -> None:
        """Cancel the goal's workflows if its task is over; else another attempt at the task goes on with them."""
        try:
            if await self._is_over():
                for number in range(MOST_PLANS):
                    if (run := await self._runs.find(number)) is not None:
                        await run.cancel(reason=f"the goal of task {self._ctx.task_id} was canceled")
        except CoditectError as error:
            facts = {"task_id": self._ctx.task_id, "reason": str(error)}
            log.warning("The workflows of a canceled goal go on", extra=facts)

    async def _is_over(self) -> bool:
        requester, task_id = self._ctx.requester, self._ctx.task_id
        if not requester.startswith(_OWNER):  # a direct task has no other attempt after a cancel
            return True
        workflow = requester.removeprefix(_OWNER)
        state = (await self._client.run(workflow).look(task_id.removeprefix(f"{workflow}:"))).state
        return state.terminal and state is not TaskState.COMPLETED
