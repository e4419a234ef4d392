"""Handoffs of running tasks, as agents and clients see them: who handed off, who was asked, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from coditect.errors import InvalidTask


class HandoffState(StrEnum):
    """The state of a handoff: requested, accepted, declined, expired or withdrawn."""

    REQUESTED = "requested"
    """The task is still its owner's, and an agent is asked."""
    ACCEPTED = "accepted"
    DECLINED = "declined"
    """All that were asked declined, or no agent could be asked."""
    EXPIRED = "expired"
    """No agent accepted in time, or the owner lost the task meanwhile."""
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class AskedAgent:
    """An agent to which a task was offered."""

    agent: str
    at_ms: int
    """When it was asked, in milliseconds since the epoch."""
    declined: str
    """Why it declined; empty when it accepted, or has not answered."""


@dataclass(frozen=True, slots=True)
class HandoffRow:
    """A handoff: which agent offers which of its running tasks to whom, and how the offer ended."""

    handoff: str
    """The id of the handoff."""
    task: str
    workflow: str
    state: HandoffState
    to: str
    """The agent or the capability that the owner named."""
    capability: str
    """The capability as which the task is taken over."""
    owner: str
    """The agent that had the task at the request."""
    fence: int
    """The fence under which the owner had it."""
    reason: str
    context: Any
    """What the owner passes on; None in a listing."""
    asked: tuple[AskedAgent, ...]
    waiting: tuple[str, ...]
    """The agents that are asked next."""
    begun_ms: int
    until_ms: int
    ended_ms: int
    """When it ended; 0 while it is open."""
    by: str
    """The agent that accepted, or the person that withdrew it."""
    why: str
    """Why the task stayed with its owner."""

    @property
    def reasons(self) -> Mapping[str, str]:
        """The reasons of the asked agents that declined, by agent."""
        return {one.agent: one.declined for one in self.asked if one.declined}

    @classmethod
    def of(cls, row: object) -> HandoffRow:
        """Parse a handoff from an answer of the control plane.

        Raises:
            InvalidTask: when the row has another form.
        """
        try:
            given: Any = row
            asked = tuple(AskedAgent(**one) for one in given["asked"])
            known = {"asked": asked, "waiting": tuple(given["waiting"]), "state": HandoffState(given["state"])}
            return cls(**{name: given[name] for name in cls.__slots__} | known)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidTask("The control plane's answer is no handoff", given=str(row)[:200]) from error
