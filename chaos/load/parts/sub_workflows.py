"""The part of a load in which workflows run child workflows, and some are canceled with their children."""

from __future__ import annotations

from chaos.load.generators import RETRY
from chaos.load.parts.part import LoadPart
from chaos.load.work import CAPABILITY
from chaos.load.workflows import CANCELED, COMPLETES, WorkflowLoad
from coditect import From, Workflow
from coditect.client.workflow_run import WorkflowRun

SUB, LAST = "sub", "last"
"""The names of the node that runs the child, and of the node that is given the child's result."""
MADE = "made"
"""The name of one of the last nodes of the child, whose results by their names are the child's."""

CANCELS = 0.4
"""The share of the parents that are canceled."""


async def parent(load: WorkflowLoad) -> None:
    """Run one workflow that has a child workflow, cancel it in two of five cases, and record how both end."""
    child = Workflow("child")
    first = child.task(CAPABILITY, load.shapes.work(), name="first", retry=RETRY)
    for name in (MADE, "also"):
        child.task(CAPABILITY, load.shapes.work(), after=[first], name=name, retry=RETRY)
    flow = Workflow("parent")
    sub = flow.workflow(child, name=SUB)
    given = {"after": [From(f"results.{SUB}.{MADE}.token")]}
    flow.task(CAPABILITY, load.shapes.work() | given, after=[sub], name=LAST, retry=RETRY)
    canceled = load.random.random() < CANCELS
    ends = CANCELED if canceled else COMPLETES
    run = await load.started(flow, ends=ends, approved=[SUB], inputs={}, children={SUB: [MADE, LAST]})
    if run is None:
        return
    if canceled:
        await load.soon()
        await load.noted("cancel", run.id, lambda: run.cancel(reason="chaos"))
    await load.end_of(run)
    for one in await load.answered(lambda: _children(run)):
        load.accepted(one, **load.shapes.told(child.definition()) | {"ends": ends, "parent": f"{run.id}:{SUB}"})
        await load.end_of(load.client.workflows.get(one))


async def _children(run: WorkflowRun) -> list[str]:
    return [child async for node in run.nodes() if node.name == SUB for child in node.children]


PART = LoadPart("sub-workflows", parent)
