"""The pursuit of a goal: plan, run, and plan again when the run failed for good, a bounded number of times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from coditect.errors import TaskError
from coditect.goals.plan import MOST_PLANS, PlanBounds
from coditect.goals.planner import Planner
from coditect.model.duration import Duration
from coditect.workflow.definition import Definition


class PlanRun(Protocol):
    """The port of a plan's workflow, such as a `Run` of the client."""

    @property
    def id(self) -> str:
        """The id of the workflow that carries out the plan."""

    async def result(self, *, timeout: Duration = ...) -> Any:
        """Wait for the workflow's end and return its value.

        Raises:
            TaskError: when it ended without a value.
            ResultTimeout: when it goes on after `timeout`.
        """


class PlanRuns(Protocol):
    """The port to the workflows of a goal's plans, by the number of the plan."""

    async def find(self, number: int) -> PlanRun | None:
        """Return the workflow that was started before for the plan of this number; None if there is none."""

    async def start(self, number: int, plan: Definition, goal: str) -> PlanRun:
        """Start the workflow of a plan, or return the one that was started before under the same number."""


@dataclass(frozen=True, slots=True)
class GoalResult:
    """The result of a goal: the value of the plan that completed, and why earlier ones failed."""

    value: Any
    workflow: str
    """The id of the workflow that completed."""
    failures: tuple[str, ...]


async def pursue(
    goal: str,
    planner: Planner,
    bounds: PlanBounds,
    runs: PlanRuns,
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
            return GoalResult(await run.result(timeout=wait), run.id, failures)
        except TaskError as error:
            failures = (*failures, str(error)[:1_000])
            if len(failures) >= most_plans or error.exit_code == 3:
                raise
