"""The rows of handoffs: one for each request to hand a task off, numbered from 1 for each task."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any, Final

from coditect.errors import NotFound
from dispatcher.ledger import versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import HANDOFFS
from dispatcher.store.transaction import Reads, Transaction

REQUESTED: Final = "requested"
ACCEPTED: Final = "accepted"
DECLINED: Final = "declined"
EXPIRED: Final = "expired"
WITHDRAWN: Final = "withdrawn"
NO_ANSWER: Final = "it did not answer in time"
MAX_NUMBER_DIGITS = 10


@dataclass(slots=True)
class HandoffRecord:
    """A request to hand a task off: who has the task, who is asked, what they said, and how it ended."""

    node_key: NodeKey
    number: int
    ticket: str
    """The id that the owner gave the request; a repeated request has the same."""
    to: str
    """The agent or the capability that the owner named."""
    capability: str
    owner: str
    """The agent that has the task until another one accepts."""
    fence: int
    """The fence under which the owner has the task; a handoff under an older one is void."""
    reason: str
    context: Any
    reply_to: str
    begun_ms: int
    until_ms: int
    state: str = REQUESTED
    waiting: list[str] = field(default_factory=list)
    """The agents that are asked next, in this order."""
    asked: list[list[Any]] = field(default_factory=list)
    """The agents that were asked: agent, when, and why it declined; an empty reason while it has not answered."""
    ended_ms: int = 0
    by: str = ""
    """The agent that accepted the handoff, or the one that withdrew it."""
    why: str = ""
    """Why the handoff ended without a new owner."""

    @property
    def id(self) -> str:
        """The id of the handoff: the task's id, a dot, and the handoff's number among those of the task."""
        return f"{self.node_key.task_id}.{self.number}"

    @property
    def is_open(self) -> bool:
        """True until the handoff is accepted, declined by all, expired or withdrawn."""
        return self.state == REQUESTED

    def entry_of(self, agent: str) -> list[Any] | None:
        """Return an agent's entry `[agent, when it was asked, why it declined]`; None when the agent was not asked."""
        return next((entry for entry in self.asked if entry[0] == agent), None)

    def as_json(self, *, whole: bool = True) -> dict[str, Any]:
        """Return the handoff as JSON values for answers to requests, with its context only if `whole`."""
        asked = [{"agent": agent, "at_ms": at_ms, "declined": why} for agent, at_ms, why in self.asked]
        plain = ("state", "to", "capability", "owner", "fence", "reason", "begun_ms", "until_ms", "ended_ms")
        fields = {name: getattr(self, name) for name in (*plain, "by", "why", "waiting")}
        place = {"handoff": self.id, "task": self.node_key.task_id, "workflow": self.node_key.workflow}
        return place | fields | {"asked": asked, "context": self.context if whole else None}


def node_of(handoff: str) -> tuple[NodeKey, int]:
    """Split a handoff's id; return the key of the task's node, and the handoff's number among those of the task.

    Raises:
        NotFound: when the text is no such id.
    """
    task, _, number = handoff.rpartition(".")
    workflow, _, node = task.partition(":")
    if not (workflow and node and number.isascii() and number.isdigit() and len(number) < MAX_NUMBER_DIGITS):
        raise _unknown(handoff)
    return NodeKey(workflow, node), int(number)


def read(tr: Reads, handoff: str) -> HandoffRecord:
    """Return the row of a handoff by its id; raise NotFound when it is unknown, or its workflow is not kept any more.

    Raises:
        NotFound: when it is unknown, or its workflow is not kept any more.
    """
    found = find(tr, handoff)
    if found is None:
        raise _unknown(handoff)
    return found


def find(tr: Reads, handoff: str) -> HandoffRecord | None:
    """Return a handoff by its id; None when it is unknown, or its workflow is not kept any more.

    Raises:
        NotFound: when the text is no id of a handoff.
    """
    node_key, number = node_of(handoff)
    row = tr.get(HANDOFFS.pack((*node_key, number)))
    return None if row is None else unpack(node_key, number, row)


def _unknown(handoff: str) -> NotFound:
    fix = "coditect task handoff list shows those that are kept, each as long as its workflow"
    return NotFound("There is no such handoff, or it is not kept any more", handoff=handoff[:300], fix=fix)


def last(tr: Reads, node_key: NodeKey) -> HandoffRecord | None:
    """Return the last handoff of a task; None when there was none."""
    for key, row in tr.get_range(*HANDOFFS.range(node_key), limit=1, reverse=True):
        return unpack(node_key, int(HANDOFFS.unpack(key)[2]), row)
    return None


def unpack(node_key: NodeKey, number: int, row: bytes) -> HandoffRecord:
    """Decode a handoff's row in the store."""
    return HandoffRecord(node_key, number, *versions.HANDOFF.unpack(row))


def packed(handoff: HandoffRecord) -> bytes:
    """Encode a handoff as its row in the store.

    Raises:
        InvalidTask: when the context is nested too deep.
    """
    return versions.HANDOFF.pack_checked(astuple(handoff)[2:])


def write(tr: Transaction, handoff: HandoffRecord) -> None:
    """Write the row of a handoff."""
    tr.set(HANDOFFS.pack((*handoff.node_key, handoff.number)), packed(handoff))
