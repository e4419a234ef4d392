"""Three agents that each say, by a method of their own, why a service is not well; a vote decides between them.

They see only the evidence, and read and change nothing.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from agents.healing.diagnosis import Bounds, Cause, ServiceEvidence, by_exclusion, by_rules, by_scores, symptoms
from agents.healing.watched import Watched
from coditect import Agent

rules = Agent("doctor-rules", version="1.0.0", slots=16, tags=frozenset({"operations"}))
scores = Agent("doctor-scores", version="1.0.0", slots=16, tags=frozenset({"operations"}))
exclusion = Agent("doctor-exclusion", version="1.0.0", slots=16, tags=frozenset({"operations"}))

_BOUNDS = Bounds()


class DiagnoseRequest(BaseModel):
    """A request to say why a service is not well."""

    model_config = ConfigDict(extra="forbid")

    service: Watched
    round: int = Field(1, ge=1)
    evidence: ServiceEvidence


class Vote(BaseModel):
    """An agent's vote: the cause and nothing else, so that two votes for the same cause are equal."""

    cause: Cause


@rules.capability("cause.rules", timeout="10s", description="Finds the cause by the order of an operator's look.")
async def diagnose_by_rules(task: DiagnoseRequest) -> Vote:
    """Return the first cause whose sign is there."""
    return Vote(cause=by_rules(symptoms(task.evidence, _BOUNDS)))


@scores.capability("cause.scores", timeout="10s", description="Finds the cause by the weight of what it explains.")
async def diagnose_by_scores(task: DiagnoseRequest) -> Vote:
    """Return the cause that explains most of the symptoms."""
    return Vote(cause=by_scores(symptoms(task.evidence, _BOUNDS)))


@exclusion.capability("cause.exclusion", timeout="10s", description="Finds the cause by what contradicts the others.")
async def diagnose_by_exclusion(task: DiagnoseRequest) -> Vote:
    """Return the cause that is left when the others are struck."""
    return Vote(cause=by_exclusion(symptoms(task.evidence, _BOUNDS)))
