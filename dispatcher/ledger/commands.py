"""The commands to a shard: every change of a shard's workflows, as a value.

Each command is idempotent by a natural key, since a transaction may be repeated and a message may come twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from coditect.model.result import Failure, Outcome, Status
from coditect.model.value import value
from coditect.wire.control import Started
from coditect.wire.json import dumps
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.attempts import MOST_MESSAGE, UNRECORDABLE
from dispatcher.ledger.nodes.inputs import Inputs
from dispatcher.ledger.timers import Timer


@value
class Finished:
    """The report that an attempt ended, from its agent, or that the broker gave up a publication.

    Counts once per fence.
    """

    node_key: NodeKey
    fence: int
    """The fence of the attempt; 0 for the publication itself, whichever attempt of it was granted last."""
    publication: int
    outcome: Outcome
    free: bool = False
    """Whether the agent would start another task of the same kind at once, and the broker has none for the agent."""

    @property
    def is_unrecorded(self) -> bool:
        """Whether the command stands for an end that could not be recorded."""
        return self.outcome.failure is not None and self.outcome.failure.reason == UNRECORDABLE

    def unrecorded(self, error: Exception) -> Finished:
        """Return the command for the same attempt as failed, because its end cannot be recorded."""
        fix = "look at the message in the queue `unrouted`, and at the dispatcher's log"
        failure = Failure(UNRECORDABLE, type(error).__name__, str(error)[:MOST_MESSAGE], retryable=True, fix=fix)
        outcome = Outcome(Status.FAILED, dumps(failure.as_json()), None, None, failure=failure)
        return replace(self, outcome=outcome, free=False)


@dataclass(frozen=True, slots=True)
class Began:
    """An agent's report that an attempt runs, or still runs."""

    started: Started


@dataclass(frozen=True, slots=True)
class Heard:
    """An agent's report of a running attempt that the dispatcher does not count as under way."""

    node_key: NodeKey
    fence: int


@value
class Claimed:
    """An agent's question whether it may run a task that was delivered before or waited long, answered by a `Claim`."""

    node_key: NodeKey
    publication: int
    agent: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's request about a workflow of the command's shard; the answer is a JSON object."""

    verb: str
    body: Mapping[str, Any]
    identity: str = ""
    """The identity of the request, the same for each repetition and for no other request; empty when it has none."""


@dataclass(frozen=True, slots=True)
class Due:
    """The notice that a timer's instant has come."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Proposed:
    """RQ's proposal of nodes that may run; the answer is how many were claimed.

    The nodes in `Effects.proposed` were not examined.
    """

    node_keys: tuple[NodeKey, ...]
    room: str = ""
    """The capability in whose capacity room is reserved for each of the nodes; empty when none is reserved."""


@dataclass(frozen=True, slots=True)
class Fill:
    """The order to claim up to `room` ready nodes of a capability from the backlog; room is reserved for them.

    The answer is whether there may be more ready nodes.
    """

    capability: str
    room: int


@dataclass(frozen=True, slots=True)
class NoQueue:
    """The notice that the broker returned a publication: no queue takes tasks of the capability."""

    node_key: NodeKey
    publication: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The notice that a publication, or the agent that had it, is gone.

    The node is published again if it still is where it was lost.
    """

    node_key: NodeKey
    publication: int
    agent: str = ""
    """The agent that had the task; empty for none: a task that an agent has begun meanwhile is not lost then."""


@dataclass(frozen=True, slots=True)
class Show:
    """The order to send nodes to RQ as the ledger has them, because RQ's copy of the workflow is missing or wrong.

    The answer names the nodes that are left for another `Show`.
    """

    workflow: str
    nodes: tuple[str, ...] = ()
    """The nodes to show; empty for all, unless the workflow has ended."""


@dataclass(frozen=True, slots=True)
class Look:
    """The request for the current snapshots of some nodes, to compare RQ's copy with; changes nothing.

    The answer is a list of `NodeSnapshot` in the same order. The nodes behind the last of the list may be left for
    another `Look`; an empty list says that none of the nodes exists.
    """

    node_keys: tuple[NodeKey, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The values of a node's expressions, or why there are none; counts once per token of `Effects.evaluations`."""

    node_key: NodeKey
    token: str
    told: Inputs | Failure


@dataclass(frozen=True, slots=True)
class GoOn:
    """The order to continue work that earlier transactions left over.

    The answer is False when the batch was full before any of that work was done.
    """


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The order to publish again what the broker may have lost; counts once per marker and occasion.

    The answer is the last publication number before the rebuild.
    """

    marker: str
    occasion: str
    kept: bool = False
    """Whether the broker is the one that the shard was built on, so that agents keep what they have begun."""


Command: TypeAlias = (
    Finished
    | Began
    | Heard
    | Claimed
    | Asked
    | Due
    | Proposed
    | Fill
    | NoQueue
    | Lost
    | Show
    | Evaluated
    | GoOn
    | Rebuild
    | Look
)
