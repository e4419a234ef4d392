"""The part of a load in which one person grants an approval while another denies it, sometimes near its timeout."""

from __future__ import annotations

import asyncio

from chaos.history import Type
from chaos.load.generators import RETRY
from chaos.load.parts.part import LoadPart
from chaos.load.work import CAPABILITY
from chaos.load.workflows import PAUSE_SECONDS, WorkflowLoad
from coditect import CoditectError, Workflow
from coditect.client.workflow_run import WorkflowRun
from coditect.errors import InputError
from coditect.workflow.states import TaskState

GATE, NEXT = "gate", "next"
"""The names of the approval, and of the node that runs when it is granted."""
ANSWERS = (("ada", True), ("bob", False))
"""Who answers the approval, and what they say."""
SOON = 0.3
"""The share of the approvals that end by a timeout at about the time at which they are answered."""
SOON_MS, NEVER = (500, 2_000), "1h"


def contested(load: WorkflowLoad) -> Workflow:
    """Return a workflow of a task, an approval, and a task that runs when the approval is granted."""
    flow = Workflow("contested")
    first = flow.task(CAPABILITY, load.shapes.work(), name="first", retry=RETRY)
    timeout = f"{load.random.randint(*SOON_MS)}ms" if load.random.random() < SOON else NEVER
    on_timeout = load.random.choice(("grant", "reject"))
    gate = flow.approval("is it so?", after=[first], name=GATE, timeout=timeout, on_timeout=on_timeout)
    flow.task(CAPABILITY, load.shapes.work(), after=[gate], name=NEXT, retry=RETRY)
    return flow


async def contest(load: WorkflowLoad) -> None:
    """Run a workflow, let two people answer its approval as soon as it awaits an answer, and record their answers."""
    run = await load.started(contested(load), ends=("completed", "rejected"), contested={GATE: NEXT}, approved=[GATE])
    if run is None:
        return
    await _asked(load, run)
    async with asyncio.TaskGroup() as group:
        for by, granted in load.random.sample(ANSWERS, len(ANSWERS)):
            group.create_task(_answer(load, run, by, granted=granted))
    await load.end_of(run)


async def _asked(load: WorkflowLoad, run: WorkflowRun) -> None:
    """Wait until the workflow's approval awaits an answer, or has ended."""
    while True:
        ending = await load.answered(lambda: run.look(GATE))
        if ending.state is TaskState.AWAITING_APPROVAL or ending.state.terminal:
            return
        await asyncio.sleep(PAUSE_SECONDS)


async def _answer(load: WorkflowLoad, run: WorkflowRun, by: str, *, granted: bool) -> None:
    key, said = f"{run.id}:{GATE}:{by}", {"node": f"{run.id}:{GATE}", "by": by, "granted": granted}
    load.note(Type.INVOKE, "answer", key, **said)
    try:
        await (run.grant if granted else run.deny)(GATE, by=by)
    except InputError:  # another one was first
        load.note(Type.FAIL, "answer", key, **said)
    except CoditectError:
        load.note(Type.INFO, "answer", key, **said)
    else:
        load.note(Type.OK, "answer", key, **said)


PART = LoadPart("contests", contest)
