"""The agent that pursues goals: the capability `goal.pursue` plans a goal, has the plan done, and plans again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from coditect.agent.declaration import Agent
from coditect.agent.handlers.context import Context
from coditect.client.client import Client
from coditect.errors import NotFound
from coditect.goals.plan import PlanBounds, SchemaChecking
from coditect.goals.planner import Planner
from coditect.goals.pursuit import pursue
from coditect.goals.share import GOAL, MOST_TOKENS, GoalRequest, GoalShare
from coditect.goals.task_runs import TaskRuns
from coditect.model.retry import Retry
from coditect.workflow.definition import Definition

TIMEOUT = "1d"
SLOTS = 100
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
    tokens: int = MOST_TOKENS,
    slots: int = SLOTS,
) -> Agent:
    """Return the agent that offers `goal.pursue`; when it starts it opens `means`: its client and maker of planners.

    Its plans use the capabilities that fit `allowed` and the request, and at most so many tokens for each goal. A goal
    holds a slot while it is planned, and none while its plan is done.
    """

    @asynccontextmanager
    async def opened(_: Agent) -> AsyncIterator[GoalMeans]:
        async with means() as found:
            yield found

    agent = Agent("goals", slots=slots, lifespan=opened, description="Pursues goals that are given in one sentence.")

    @agent.capability(
        GOAL,
        timeout=TIMEOUT,
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
        share = task.share(allowed, tokens)
        bounds = await _bounds(found.client, share, check)

        def planned(plan: Definition, workflow: str) -> None:
            ctx.report(0.1, f"workflow {workflow}: {', '.join(node.title for node in plan.nodes)}"[:500])

        runs = TaskRuns(found.client, ctx, planned)
        try:
            result = await pursue(task.goal, found.planner_of(share.tokens), bounds, runs, wait=TIMEOUT)
        except asyncio.CancelledError:
            if ctx.services.asked_to_end:  # else the agent stops, and the next attempt goes on
                await asyncio.shield(runs.cancel())
            raise
        return {"value": result.value, "workflow": result.workflow, "failures": list(result.failures)}

    return agent


async def _bounds(client: Client, share: GoalShare, check: SchemaChecking) -> PlanBounds:
    offers = {spec.name: spec for one in await client.agents() for spec in one.registration.capabilities}
    allowed = {name: spec for name, spec in offers.items() if share.allows(name)}
    if not allowed:
        fix = "start agents, or allow more capabilities"
        raise NotFound("No living agent offers what the goal may use", patterns=share.patterns, fix=fix)
    return PlanBounds(allowed, check, share=share)
