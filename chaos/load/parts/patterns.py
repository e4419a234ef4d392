"""The part of a load whose workflows are made from the patterns `race`, `quorum` and `map_reduce`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

from chaos.history import Note, Type
from chaos.load.parts.part import PART_RETRY, LoadPart, executed
from chaos.load.work import Flaky
from chaos.load.workflows import WorkflowLoad
from coditect import Agent, Context
from coditect.workflow.definition import Definition
from coditect.workflow.patterns.merging import MergeRule, merge
from coditect.workflow.patterns.pattern import Catalogue, load_patterns, render_pattern
from coditect.workflow.states import WorkflowState

MEMBER, JOINED = "chaos.member", "chaos.joined"
"""The capabilities of a pattern's parallel tasks, and of the task that is given their results."""
MEMBERS = 4
"""The number of a pattern's parallel tasks."""
ENOUGH = 2
"""How many results are enough for a quorum."""
_NUMBER = re.compile(r"(\d+)\]?$")


class Members(BaseModel):
    """The input of each parallel task of a pattern: how long each works, and how many of its first attempts fail."""

    milliseconds: list[int]
    fails: list[int]


class Results(BaseModel):
    """The input of the task that joins the results of the parallel tasks."""

    rule: MergeRule = MergeRule.COMBINE
    values: list[Any]


def offer(agent: Agent, note: Note) -> None:
    """Let an agent execute a pattern's parallel tasks, each of which returns its id and fence, and join the results."""

    @agent.capability(MEMBER, timeout="10m", retry=PART_RETRY, description="Waits, and returns its id.")
    async def member(given: Members, ctx: Context) -> str:
        """Wait or fail as the input says for the member whose number is in the task's id."""
        found = _NUMBER.search(ctx.task_id)
        assert found is not None
        place = int(found[1]) - (not ctx.task_id.endswith("]"))
        async with executed(ctx, note):
            await asyncio.sleep(given.milliseconds[place] / 1000)
            if ctx.attempt <= given.fails[place]:
                raise Flaky(f"attempt {ctx.attempt} of {given.fails[place]} that fail")
        return f"{ctx.task_id}@{ctx.fence}"

    @agent.capability(JOINED, timeout="10m", retry=PART_RETRY, description="Joins results.")
    async def joined(given: Results, ctx: Context) -> Any:
        """Return the first result or all results, as the input's merge rule says."""
        async with executed(ctx, note):
            return merge(given.rule, given.values)


@cache
def _patterns() -> Catalogue:
    return load_patterns()


def race() -> tuple[Definition, list[str], int]:
    """Return the workflow of a race, the names of its racers, and the number of results that are enough: 1."""
    flow = render_pattern(_patterns(), "race", {"racers": [MEMBER] * MEMBERS, "merge": JOINED})
    return flow, [f"racer_{number}" for number in range(1, MEMBERS + 1)], 1


def quorum() -> tuple[Definition, list[str], int]:
    """Return the workflow of a quorum, the names of its members, and the number of results that are enough."""
    flow = render_pattern(_patterns(), "quorum", {"members": [MEMBER] * MEMBERS, "enough": ENOUGH, "merge": JOINED})
    return flow, [f"member_{number}" for number in range(1, MEMBERS + 1)], ENOUGH


def map_reduce() -> tuple[Definition, list[str], int]:
    """Return the workflow of a map-reduce, the names of the map's elements, and their number, since all are needed."""
    flow = render_pattern(_patterns(), "map_reduce", {"map": MEMBER, "reduce": JOINED, "limit": MEMBERS})
    return flow, [f"each[{number}]" for number in range(MEMBERS)], MEMBERS


async def join(load: WorkflowLoad) -> None:
    """Run a race, a quorum and a map-reduce once, in random order; start none after the load is closed."""
    for drawn in load.random.sample((race, quorum, map_reduce), 3):
        if not load.closed.is_set():
            await _joined(load, *drawn())


async def _joined(load: WorkflowLoad, flow: Definition, members: Sequence[str], enough: int) -> None:
    """Run a pattern's workflow; record its parallel tasks, how many are enough, and the result that the client got."""
    work = [load.shapes.work() for _ in members]
    given: dict[str, Any] = {name: [one[name] for one in work] for name in ("milliseconds", "fails")}
    run = await load.started(
        flow,
        given | {"items": [given] * MEMBERS},
        most=PART_RETRY.max_attempts,  # the pattern's nodes have no policy: that of their capabilities applies
        priorities={},
        inputs={},
        members=members,
        enough=enough,
    )
    if run is not None and await load.end_of(run) is WorkflowState.COMPLETED:
        told = await load.answered(run.result)
        load.note(Type.OK, "joined", run.id, values=told if isinstance(told, list) else [told])


PART = LoadPart("patterns", join, offer)
