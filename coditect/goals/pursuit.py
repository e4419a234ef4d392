"""The pursuit of a goal: plan, run, and plan again when the run failed for good, a bounded number of times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from coditect.errors import TaskError
from coditect.goals.plan import PlanBounds
from coditect.goals.planner import Planner
from coditect.workflow.definition import Definition

MOST_PLANS = 3


@dataclass(frozen=True, slots=True)
class GoalResult:
    """The result of a goal: the value of the plan that completed, and why earlier ones failed."""

    value: Any
    failures: tuple[str, ...]


async def pursue(
    goal: str,
    planner: Planner,
    bounds: PlanBounds,
    run: Callable[[Definition, dict[str, str]], Awaitable[Any]],
    *,
    most_plans: int = MOST_PLANS,
) -> GoalResult:
    """Plan a goal, run the plan, and return its value; `run` gets the workflow and its input.

    A run that ends without a value leads to the next plan. Whatever else `run` raises goes to the caller, also that
    time is up: the workflow goes on then, and a second plan would do its work twice.

    Raises:
        TaskError: of the last plan, when none completed.
        InputError: when the planner has no plan that the bounds allow.
    """
    failures: tuple[str, ...] = ()
    while True:
        workflow = await planner.plan(goal, bounds, failures)
        try:
            return GoalResult(await run(workflow, {"goal": goal}), failures)
        except TaskError as error:
            failures = (*failures, str(error)[:1_000])
            if len(failures) >= most_plans or error.exit_code == 3:
                raise
