"""The requests by which agents ask to run workflow tasks, and the answers: run, drop, or wait."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from coditect.errors import InvalidTask
from coditect.model.task import Owner


class Verdict(StrEnum):
    """The control plane's decision on an agent's request to run a workflow task: run it, drop it, or wait."""

    RUN = "run"
    """Run the delivery's task, as the attempt and with the fence of the answer."""
    STALE = "stale"
    """Drop the delivery: the node has a newer publication, or has ended."""
    WAIT = "wait"
    """Hand the delivery back and ask again: another agent may have the task, and this would be one attempt too many."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The answer to a request to run a workflow task: verdict, fence, attempt, and whether the task may kill agents."""

    verdict: Verdict
    fence: int = 0
    attempt: int = 1
    suspect: bool = False
    """Whether to run the task in a process of its own, because it may have killed the agent that ran it before."""
    known: bool = True
    """Whether the node exists; the delivery of an unknown node is stale, and comes from a foreign publisher."""

    def as_json(self) -> dict[str, Any]:
        """Return the answer to an agent that asks to run a workflow task, as the JSON object of the message body."""
        return {
            "verdict": self.verdict.value,
            "fence": self.fence,
            "attempt": self.attempt,
            "suspect": self.suspect,
            "known": self.known,
        }

    @classmethod
    def read(cls, value: Any) -> Self:
        """Parse the control plane's answer to an agent that asks to run a workflow task.

        Raises:
            InvalidTask: when the value is no such answer.
        """
        try:
            verdict, fence, attempt = Verdict(value["verdict"]), int(value["fence"]), int(value["attempt"])
            return cls(verdict, fence, attempt, value["suspect"] is True, value.get("known") is not False)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidTask("The answer is no claim", reason=repr(error)[:200]) from error


def claim_body(
    owner: Owner, *, publication: int, agent: str, running: bool, max_attempts: int | None = None
) -> dict[str, Any]:
    """Build the body of an agent's request to run a workflow task.

    `running`: the delivery belongs to an execution that the agent still has. `max_attempts`: the number of attempts in
    the capability's own retry policy.
    """
    return {
        "workflow": owner.workflow,
        "node": owner.node,
        "fence": owner.fence,
        "publication": publication,
        "agent": agent,
        "running": running,
        **({} if max_attempts is None else {"max_attempts": max_attempts}),
    }
