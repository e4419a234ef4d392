"""Workflows whose nodes have keyed effects, and what must hold when one has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from coditect import Workflow
from coditect.client.workflow_run import WorkflowRun
from tests.integration.agent.fleet import Fleet

AGENT = str(Path(__file__).with_name("keyed_agent.py"))
PREDECESSORS = 3


def layered(widths: Sequence[int], *, milliseconds: int) -> Workflow:
    """Layers of nodes, each after three of the layer before."""
    flow = Workflow("layered")
    layer: list[str] = []
    for depth, width in enumerate(widths):
        names = [f"d{depth}n{number:02}" for number in range(width)]
        for number, name in enumerate(names):
            after = {layer[(number + step) % len(layer)]: None for step in range(PREDECESSORS)} if layer else {}
            flow.task("keyed.work", milliseconds, name=name, after=list(after))
        layer = names
    return flow


async def assert_each_once_and_in_order(fleet: Fleet, run: WorkflowRun, nodes: int) -> None:
    """One completed attempt of each node in the ledger, one effect, and that after those of its predecessors."""
    completed = Counter([row.node async for row in run.attempts() if row.status == "completed"])
    rows = [row async for row in run.nodes()]
    assert len(completed) == len(rows) == nodes
    assert set(completed.values()) == {1}
    effects = Counter(name for name in fleet.noted("effect") if name.startswith(run.id))
    owed = Counter(f"{run.id}:{row.name}" for row in rows)
    assert effects == owed, f"without an effect: {sorted(owed - effects)}, with more than one: {sorted(effects - owed)}"
    first = {(kind, task_id): number for number, (kind, task_id, _) in reversed(list(enumerate(fleet.effects())))}
    for row in rows:
        for before in row.after:
            assert first["effect", f"{run.id}:{before}"] < first["start", f"{run.id}:{row.name}"]
