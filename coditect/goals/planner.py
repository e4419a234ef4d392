"""The port of planners: from a goal in words to a checked workflow."""

from __future__ import annotations

from typing import Protocol

from coditect.goals.plan import PlanBounds
from coditect.workflow.definition import Definition


class Planner(Protocol):
    """The port of a planner, which makes a checked workflow from a goal in words."""

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        """Return a workflow for a goal in words, checked by the goal's bounds; `failures` say why earlier ones failed.

        Raises:
            InputError: when there is no plan for the goal, or none that the bounds allow.
        """
