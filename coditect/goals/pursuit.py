"""The pursuit of a goal: plan, run, and plan again when the run failed for good, a bounded number of times.

A caller pursues a goal by `pursue`, and the agent of `goal_agent` does so for the capability `goal.pursue`. The plans'
workflows are found again by the goal's key.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from coditect.agent.context import Context
from coditect.agent.declaration import Agent
from coditect.client.client import Client
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import CoditectError, NotFound, TaskError
from coditect.goals.plan import GOAL, MAX_GOAL_TOKENS, MOST_PLANS, GoalRequest, GoalShare, PlanBounds, SchemaChecking
from coditect.goals.planners import Planner
from coditect.model import arguments
from coditect.model.duration import Duration
from coditect.model.retry import Retry
from coditect.workflow.definition import Definition
from coditect.workflow.states import TaskState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GoalResult:
    """The result of a goal: the value of the plan that completed, and why earlier ones failed."""

    value: Any
    workflow: str
    """The id of the workflow that completed."""
    failures: tuple[str, ...]


LABEL = "coditect.goal"
"""The label of a plan's workflow: the goal's key, and the number of the plan."""
MAX_GOAL_KEY_BYTES = 190
Planned = Callable[[Definition, str], object]
"""Called with each plan that was started, and the id of its workflow."""


class ClientRuns:
    """The workflows of one goal. With a key each plan is started once, however often the goal is pursued."""

    def __init__(self, client: Client, key: str | None, planned: Planned) -> None:
        """Take the client that starts plans, the goal's key, and a function that is called with each started plan.

        Raises:
            InputError: when the key is empty or too long.
        """
        self._client, self._planned = client, planned
        self._key = None if key is None else arguments.text("key", key, shortest=1, longest=MAX_GOAL_KEY_BYTES)

    async def find(self, number: int) -> WorkflowRun | None:
        """Return the workflow that an earlier pursuit under the same key started for a plan, or None."""
        if self._key is None:
            return None
        async for row in self._client.workflows.list(labels={LABEL: f"{self._key}:{number}"}, limit=1):
            return self._client.workflows.get(row.workflow)
        return None

    async def start(self, number: int, plan: Definition, goal: str) -> WorkflowRun:
        """Start the workflow of a plan; with a key, return the one that was started for the plan before, if any."""
        goal_input = {"goal": goal}
        if self._key is None:
            run = await self._client.start(plan, goal_input)
        else:
            name = f"{self._key}:{number}"
            run = await self._client.start(plan, goal_input, idempotency_key=f"goal:{name}", labels={LABEL: name})
        self._planned(plan, run.id)
        return run

    async def result(self, run: WorkflowRun, *, timeout: Duration) -> Any:
        """Wait for a workflow's end and return its value; see `WorkflowRun.result`."""
        return await run.result(timeout=timeout)


async def pursue(
    goal: str,
    planner: Planner,
    bounds: PlanBounds,
    runs: ClientRuns,
    *,
    wait: Duration = "1h",
    most_plans: int = MOST_PLANS,
) -> GoalResult:
    """Plan a goal and run the plan, and plan again if it fails, up to `most_plans` plans in all; return the result.

    A plan that an earlier call started is not planned again, but awaited. A run that ends without a value leads to the
    next plan. Every other error goes to the caller, also that the time of a plan (`wait`) is up: the workflow goes on
    then, and a second plan would do its work twice.

    Raises:
        TaskError: of the last plan, when none completed.
        InputError: when the planner has no plan that the bounds allow.
        ResultTimeout: when a plan is not done after `wait`; the same call may be made again.
    """
    failures: tuple[str, ...] = ()
    while True:
        number = len(failures)
        run = await runs.find(number)
        if run is None:
            run = await runs.start(number, await planner.plan(goal, bounds, failures), goal)
        try:
            return GoalResult(await runs.result(run, timeout=wait), run.id, failures)
        except TaskError as error:
            failures = (*failures, str(error)[:1_000])
            if len(failures) >= most_plans or error.exit_code == 3:
                raise


_OWNER = "workflow:"


class TaskRuns(ClientRuns):
    """The workflows of one goal's task, which all attempts at the task share and await without a slot."""

    def __init__(self, client: Client, ctx: Context, planned: Planned) -> None:
        super().__init__(client, ctx.task_id, planned)
        self._ctx = ctx

    async def result(self, run: WorkflowRun, *, timeout: Duration) -> Any:
        """Wait for a workflow's end and return its value.

        A workflow that has ended already needs no wait, so a goal that went back to its queue at the bound of waits
        ends with its plan, however many other goals wait.
        """
        result = run.result(timeout=timeout)
        try:
            ended = (await run.state()).terminal
        except BaseException:
            result.close()
            raise
        return await (result if ended else self._ctx.without_slot(result))

    async def cancel(self) -> None:
        """Cancel the goal's workflows if its task is over; else another attempt at the task goes on with them."""
        try:
            if await self._is_over():
                for number in range(MOST_PLANS):
                    if (run := await self.find(number)) is not None:
                        await run.cancel(reason=f"the goal of task {self._ctx.task_id} was canceled")
        except CoditectError as error:
            facts = {"task_id": self._ctx.task_id, "reason": str(error)}
            log.warning("The workflows of a canceled goal go on", extra=facts)

    async def _is_over(self) -> bool:
        requester, task_id = self._ctx.requester, self._ctx.task_id
        if not requester.startswith(_OWNER):  # a direct task has no other attempt after a cancel
            return True
        workflow = requester.removeprefix(_OWNER)
        state = (await self._client.workflows.get(workflow).look(task_id.removeprefix(f"{workflow}:"))).state
        return state.terminal and state is not TaskState.COMPLETED


GOAL_TIMEOUT = "1d"
GOAL_SLOTS = 100
"""The number of goals that are planned at once; a goal holds no slot while its plan is carried out."""

PlannerOf = Callable[[int], Planner]
"""Returns a planner that may use so many tokens of a model."""


@dataclass(frozen=True, slots=True)
class GoalMeans:
    """A client, which starts the workflows of plans, and a function that makes planners, for all goals of an agent."""

    client: Client
    planner_of: PlannerOf


def goal_agent(
    means: Callable[[], AbstractAsyncContextManager[GoalMeans]],
    check: SchemaChecking,
    *,
    allowed: tuple[str, ...] = ("*",),
    slots: int = GOAL_SLOTS,
) -> Agent:
    """Return the agent that offers `goal.pursue`; when it starts it opens `means`: its client and maker of planners.

    Its plans use the capabilities that fit `allowed` and the request, and at most 50,000 tokens for each goal. A goal
    holds a slot while it is planned, and none while its plan is done.
    """

    description = "Pursues goals that are given in one sentence."
    agent = Agent("goals", slots=slots, lifespan=lambda _: means(), description=description)

    @agent.capability(
        GOAL,
        timeout=GOAL_TIMEOUT,
        retry=Retry(max_attempts=5, first="1s", cap="1m"),
        description="Plans a goal, has other agents do the plan, and plans again when it fails for good.",
    )
    async def pursue_goal(task: GoalRequest, ctx: Context) -> dict[str, Any]:
        """Return the value of a plan for the goal. An attempt after a fault goes on with the same workflows.

        A canceled goal cancels its workflow.

        Raises:
            InputError: not retryable; there is no plan that the bounds allow.
            TaskError: the last plan failed for good.
        """
        found: GoalMeans = ctx.lifespan
        share = task.share(allowed, MAX_GOAL_TOKENS)
        bounds = await _bounds(found.client, share, check)

        def planned(plan: Definition, workflow: str) -> None:
            ctx.report(0.1, f"workflow {workflow}: {', '.join(node.title for node in plan.nodes)}"[:500])

        runs = TaskRuns(found.client, ctx, planned)
        try:
            result = await pursue(task.goal, found.planner_of(share.tokens), bounds, runs, wait=GOAL_TIMEOUT)
        except asyncio.CancelledError:
            if ctx.services.asked_to_end:  # else the agent stops, and the next attempt goes on
                await asyncio.shield(runs.cancel())
            raise
        return {"value": result.value, "workflow": result.workflow, "failures": list(result.failures)}

    return agent


async def _bounds(client: Client, share: GoalShare, check: SchemaChecking) -> PlanBounds:
    offers = {spec.name: spec for agent in await client.agents.list() for spec in agent.registration.capabilities}
    allowed = {name: spec for name, spec in offers.items() if share.allows(name)}
    if not allowed:
        fix = "start agents, or allow more capabilities"
        raise NotFound("No living agent offers what the goal may use", patterns=share.patterns, fix=fix)
    return PlanBounds(allowed, check, share=share, lessons=await client.lessons.about(allowed) or {})
