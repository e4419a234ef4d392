"""The agent that merges the results of a workflow's nodes: `coditect agent run coditect.integrations.merging`.

Patterns such as `majority_vote` call its capability `results.merge`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from coditect.agent.declaration import Agent
from coditect.workflow.patterns.merging import MAX_MERGED_VALUES, MergeRule, merge

agent = Agent("merger", version="1.0.0", slots=16)


class MergeRequest(BaseModel):
    """A request to merge several results into one; a result that is null counts as missing."""

    model_config = ConfigDict(extra="forbid")

    rule: MergeRule = Field(description="How the results become one value.")
    values: list[Any] = Field(max_length=MAX_MERGED_VALUES, description="The results, in order; null is a missing one.")
    weights: list[float] = Field([], max_length=MAX_MERGED_VALUES, description="One for each result, for `weighted`.")
    least: int = Field(1, ge=1, description="How many results must be there.")


@agent.capability("results.merge")
async def merge_results(request: MergeRequest) -> Any:
    """Merge results into one value; refuse when a vote has no winner or too few results are there."""
    return merge(request.rule, request.values, weights=request.weights, least=request.least)
