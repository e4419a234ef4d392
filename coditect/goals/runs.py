"""The workflows of a goal's plans in the control plane, found again by the goal's key."""

from __future__ import annotations

from collections.abc import Callable

from coditect.client.client import Client
from coditect.client.workflow_run import Run
from coditect.model import arguments
from coditect.workflow.definition import Definition

LABEL = "coditect.goal"
"""The label of a plan's workflow: the goal's key, and the number of the plan."""
LONGEST_KEY_BYTES = 190
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
        self._key = None if key is None else arguments.text("key", key, shortest=1, longest=LONGEST_KEY_BYTES)

    async def find(self, number: int) -> Run | None:
        """Return the workflow that an earlier pursuit under the same key started for a plan, or None."""
        if self._key is None:
            return None
        async for row in self._client.runs(labels={LABEL: f"{self._key}:{number}"}, most=1):
            return self._client.run(row.workflow)
        return None

    async def start(self, number: int, plan: Definition, goal: str) -> Run:
        """Start the workflow of a plan; with a key, return the one that was started for the plan before, if any."""
        given = {"goal": goal}
        if self._key is None:
            run = await self._client.start(plan, given)
        else:
            name = f"{self._key}:{number}"
            run = await self._client.start(plan, given, key=f"goal:{name}", labels={LABEL: name})
        self._planned(plan, run.id)
        return run
