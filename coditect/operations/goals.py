"""The use case of goals: plan a workflow for a goal from what agents offer, run it, and plan again when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coditect.errors import NotFound
from coditect.goals.plan import MAX_GOAL_TOKENS, MOST_PLANS, GoalShare, PlanBounds, SchemaChecking
from coditect.goals.planners import Planner
from coditect.goals.pursuit import ClientRuns, GoalResult, Planned, pursue
from coditect.operations import fleet
from coditect.operations.connections import Connections
from coditect.registry.port import Search


@dataclass(frozen=True, slots=True)
class GoalOrder:
    """A goal in words, with the limits of its pursuit: capabilities, time, number of plans, and tokens."""

    goal: str
    patterns: Sequence[str] = ("*",)
    """The capabilities that plans may use, such as `code.*`."""
    wait: str = "1h"
    """How long one plan may take."""
    most_plans: int = MOST_PLANS
    tokens: int = MAX_GOAL_TOKENS
    """How many tokens of a model its own plans may use; goals in its plans share as many again."""
    key: str | None = None
    """The key by which the goal is pursued once: a second pursuit goes on with the same workflows."""


async def pursue_goal(
    opened: Connections,
    order: GoalOrder,
    planner: Planner,
    check: SchemaChecking,
    *,
    planned: Planned,
) -> GoalResult:
    """Plan and run at most `order.most_plans` workflows for a goal, until one completes; return the result.

    The function `planned` is called with each plan that is started, and the id of its workflow.

    Raises:
        NotFound: when no living agent offers a capability that the goal may use.
        InputError: when the planner has no plan that the bounds allow.
        TaskError: of the last plan, when none completed; ResultTimeout when it goes on after `wait`.
    """
    offers = {one.spec.name: one.spec for one in await fleet.find_offers(opened, Search())}
    share = GoalShare(patterns=(tuple(order.patterns),), tokens=order.tokens)
    allowed = {name: spec for name, spec in offers.items() if share.allows(name)}
    if not allowed:
        fix = "start agents, or allow more: --capability 'code.*'"
        raise NotFound("No living agent offers what the goal may use", patterns=list(order.patterns), fix=fix)
    async with opened.fleet() as client:
        learned = await client.lessons.about(allowed) or {}
        runs, bounds = ClientRuns(client, order.key, planned), PlanBounds(allowed, check, share=share, lessons=learned)
        return await pursue(order.goal, planner, bounds, runs, wait=order.wait, most_plans=order.most_plans)
