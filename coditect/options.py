"""How a task is submitted."""

from __future__ import annotations

from dataclasses import dataclass

from coditect.model.capability import Priority
from coditect.model.duration import Duration
from coditect.model.ids import AgentId
from coditect.model.strategy import ANYTHING, Strategy, Wanted

SUBMIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Options:
    """How one task is submitted; every field has a sensible default."""

    priority: Priority = Priority.P1
    timeout: Duration | None = None
    """Longest run of one attempt; the capability's own when None."""
    deadline: Duration | None = None
    """From now on; after it nobody wants the result. No bound when None."""
    start_within: Duration | None = None
    """How long it may wait unstarted."""
    pin: AgentId | None = None
    """The agent that is preferred; another does it when that one does not take it within a second."""
    strategy: Strategy | None = None
    """Picks the agent to prefer from the registry; None is the capability's own, or the broker's balance."""
    wanted: Wanted = ANYTHING
    """What the agent should have: for `best_match`, which is the strategy when only this is given."""
    max_attempts: int | None = None
    results: bool = True
    """Whether the result is wanted; without it nothing comes back, and nobody waits for it."""
    idempotency_key: str | None = None
    submit_timeout: Duration = SUBMIT_SECONDS
    """How long a submit may wait for the broker: an outage, an alarm, a full queue."""
