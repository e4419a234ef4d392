"""Three agents that each say, by a method of their own, why a service is not well; a vote decides between them.

They see only the evidence, and read and change nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel, ConfigDict, Field

from agents.healing.diagnosis import (
    Bounds,
    Cause,
    ServiceEvidence,
    Symptom,
    by_exclusion,
    by_rules,
    by_scores,
    symptoms,
)
from agents.healing.watched import Watched
from coditect import Agent


class DiagnoseRequest(BaseModel):
    """A request to say why a service is not well."""

    model_config = ConfigDict(extra="forbid")

    service: Watched
    round: int = Field(1, ge=1)
    evidence: ServiceEvidence


class Vote(BaseModel):
    """An agent's vote: the cause and nothing else, so that two votes for the same cause are equal."""

    cause: Cause


def _doctor(name: str, description: str, method: Callable[[frozenset[Symptom]], Cause]) -> Agent:
    """Return an agent that votes for the cause that a method finds in the symptoms of a service."""
    agent = Agent(f"doctor-{name}", version="1.0.0", slots=16, tags=frozenset({"operations"}))

    @agent.capability(f"cause.{name}", timeout="10s", description=description)
    async def diagnose(task: DiagnoseRequest) -> Vote:
        return Vote(cause=method(symptoms(task.evidence, Bounds())))

    return agent


rules = _doctor("rules", "Finds the cause by the order of an operator's look.", by_rules)
scores = _doctor("scores", "Finds the cause by the weight of what it explains.", by_scores)
exclusion = _doctor("exclusion", "Finds the cause by what contradicts the others.", by_exclusion)
