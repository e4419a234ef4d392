"""The part of a load in which agents vote by the pattern `majority_vote`, and some of them give no answer."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import BaseModel

from chaos.history import Note, Type
from chaos.load.parts.part import PART_RETRY, LoadPart, executed
from chaos.load.work import Broken, Flaky
from chaos.load.workflows import WorkflowLoad
from coditect import Agent, Context
from coditect.integrations.merging import MergeRequest, merge_results
from coditect.workflow.patterns.pattern import Catalogue, load_patterns, render_pattern
from coditect.workflow.states import WorkflowState

VOTE, MERGE = "chaos.vote", "chaos.merge"
"""The capabilities that give a vote, and that count the votes."""
ABSENT = ""
"""The ballot of a voter that gives no answer."""
VOTERS = (3, 5)
"""The smallest and largest number of voters."""


@cache
def _patterns() -> Catalogue:
    return load_patterns()


class Ballots(BaseModel):
    """The input of a vote: what each voter says, and how many of its first attempts fail."""

    ballots: list[str]
    fails: list[int]


def offer(agent: Agent, note: Note) -> None:
    """Give an agent two capabilities: cast the ballot in a task's input, and count ballots by the product's code."""

    @agent.capability(VOTE, timeout="10m", retry=PART_RETRY, description="Votes as it is told.")
    async def vote(given: Ballots, ctx: Context) -> str:
        """Return the ballot of the voter with the number in the name of the task's node."""
        place = int(ctx.task_id.rpartition("_")[2]) - 1
        async with executed(ctx, note):
            if given.ballots[place] == ABSENT:
                raise Broken("a voter that has no answer")
            if ctx.attempt <= given.fails[place]:
                raise Flaky(f"attempt {ctx.attempt} of {given.fails[place]} that fail")
        return given.ballots[place]

    @agent.capability(MERGE, timeout="10m", retry=PART_RETRY, description="Counts votes.")
    async def count(request: MergeRequest, ctx: Context) -> Any:
        """Return the value that has more than half of the votes."""
        async with executed(ctx, note):
            return await merge_results(request)


async def vote(load: WorkflowLoad) -> None:
    """Run one vote, and record what each voter was to say, and the result that the client was told."""
    voters = load.random.randint(*VOTERS)
    ballots = [load.random.choice(("yes", "yes", "no", "no", ABSENT)) for _ in range(voters)]
    fails = [int(load.random.random() < load.pace.flaky) for _ in range(voters)]
    arguments = {"voters": [VOTE] * voters, "merge": MERGE}
    flow = render_pattern(_patterns(), "majority_vote", arguments, as_name="votes")
    cast = {f"vote_{number}": ballot for number, ballot in enumerate(ballots, 1)}
    run = await load.started(
        flow,
        {"ballots": ballots, "fails": fails},
        ends=("completed", "failed"),
        most=PART_RETRY.max_attempts,  # the pattern's nodes have no policy: that of their capabilities applies
        priorities={},
        ballots=cast,
    )
    if run is not None and await load.end_of(run) is WorkflowState.COMPLETED:
        load.note(Type.OK, "verdict", run.id, value=await load.answered(run.result))


PART = LoadPart("votes", vote, offer)
