"""The offer to hand a running task over to another agent, as a message to that agent's mailbox."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from coditect.errors import InvalidTask


@dataclass(frozen=True, slots=True)
class HandoffOffer:
    """A running task that its agent offers to another agent, as that agent's `on_handoff` function sees it."""

    handoff: str
    """The id of the handoff."""
    task_id: str
    capability: str
    """The capability as which the agent would run the task."""
    owner: str
    """The agent that has the task now, and keeps it until another one accepts."""
    reason: str
    context: Any
    """What the owner passes on: any JSON value."""
    hop: int
    """How often the task will have changed hands when this offer is accepted, from 1."""
    input: Any = None
    """The input of the task; None when `whole` is False."""
    whole: bool = True
    """Whether the offer has the input; it does not when the input is over 256 KB or lies in the blob store."""

    def as_json(self) -> dict[str, Any]:
        """Return the offer as the content of a control message."""
        return asdict(self)

    @classmethod
    def read(cls, content: Any) -> Self:
        """Parse an offer from the content of a control message.

        Raises:
            InvalidTask: when the content is no such offer.
        """
        try:
            handoff, task_id, capability, owner, reason = (
                str(content[name]) for name in ("handoff", "task_id", "capability", "owner", "reason")
            )
            hop, whole = int(content["hop"]), content["whole"] is True
            return cls(handoff, task_id, capability, owner, reason, content["context"], hop, content["input"], whole)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidTask("A control message offers no task", reason=repr(error)[:200]) from error
