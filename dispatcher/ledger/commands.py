"""The commands to a shard as values, such as an agent's report, a client's request, or a due timer.

Every change of a shard's workflows but their removal begins with one of them. Each command is idempotent by a natural
key, since a transaction may be repeated and a message may come twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any, TypeAlias

from coditect.model.ids import AgentId
from coditect.model.message import value
from coditect.model.result import Failure, Outcome, Status
from coditect.model.retry import Retry
from coditect.wire.control import Started
from coditect.wire.json import dumps
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.attempts import DIED, MOST_MESSAGE, UNRECORDABLE
from dispatcher.ledger.nodes.inputs import Inputs
from dispatcher.ledger.timers import Timer

RECORD_LESSONS = "lesson.record"
"""The verb by which a dispatcher adds to the lessons; texts of anybody else would be neither masked nor bounded."""


@value
class Finished:
    """The report that an attempt ended: the agent's, or the dispatcher's own, as after a timeout or a dead letter.

    Counts once per fence.
    """

    node_key: NodeKey
    fence: int
    """The fence of the ended attempt; 0 when the report is about a publication and any attempt of it."""
    publication: int
    outcome: Outcome
    free: bool = False
    """Whether the reporting agent has a free slot and the broker has no task of the same capability for it."""

    reported: bool = True
    """Whether an agent reported it, and by its policy whether another attempt follows."""

    @property
    def is_unrecorded(self) -> bool:
        """Tell whether the report was made by `unrecorded`, in place of a report that the ledger could not record."""
        return self.outcome.failure is not None and self.outcome.failure.reason == UNRECORDABLE.reason

    def unrecorded(self, error: Exception) -> Finished:
        """Return a report that the same attempt failed, to use when the ledger cannot record its real end."""
        return replace(self, outcome=unreported(UNRECORDABLE, error), free=False, reported=False)


def unreported(failure: Failure, error: Exception) -> Outcome:
    """Return the failed outcome of an attempt whose result the dispatcher could not use, because of an error."""
    failure = replace(failure, type=type(error).__name__, message=str(error)[:MOST_MESSAGE])
    return Outcome(Status.FAILED, dumps(failure.as_json()), None, None, failure=failure)


@dataclass(frozen=True, slots=True)
class Began:
    """An agent's report that it has started an attempt, or that the attempt still runs."""

    started: Started


@dataclass(frozen=True, slots=True)
class Heard:
    """The report of an agent that runs an attempt which the dispatcher does not expect to be running."""

    node_key: NodeKey
    fence: int


@value
class Claimed:
    """An agent's question whether it may run a task that was redelivered or waited long; the answer: run or drop it."""

    node_key: NodeKey
    publication: int
    agent: str
    max_attempts: int = Retry().max_attempts
    """The number of attempts by the capability's own retry policy, which the agent knows; the node's own goes first."""


@dataclass(frozen=True, slots=True)
class AgentFate:
    """The finding that an agent lives or is gone, for a node whose attempt at that agent another agent took over."""

    node_key: NodeKey
    agent: AgentId
    lives: bool
    has_task: bool = False
    """Whether the living agent says that it still has the task."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to change the shard, such as a workflow's cancel or a lock's release; the answer is a JSON object."""

    verb: str
    body: Mapping[str, Any]
    identity: str = ""
    """The id that a client gives a request and repeats with each repetition; empty when the request has none."""
    until: float = inf
    """The event loop's time at which the sender stops waiting: from then on the request must change nothing."""


@dataclass(frozen=True, slots=True)
class Due:
    """The order to carry out a timer whose time has come."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Proposed:
    """RQ's proposal of nodes that may run; the answer is how many of them the ledger claimed.

    The nodes in `Effects.proposed` were not examined.
    """

    node_keys: tuple[NodeKey, ...]
    room: str = ""
    """The capability for which one publication is reserved for each proposed node; empty when none is reserved."""


@dataclass(frozen=True, slots=True)
class Fill:
    """The order to claim the first nodes of a capability's backlog, for which publishing capacity is reserved already.

    The answer is the nodes that are left for another transaction.
    """

    capability: str
    node_keys: tuple[NodeKey, ...]


@dataclass(frozen=True, slots=True)
class NoQueue:
    """The broker's notice that it returned a task, because no queue takes tasks of the capability."""

    node_key: NodeKey
    publication: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The notice that a node's published task is gone, or that the agent which had the task is gone.

    The node is published again unless it has moved on since.
    """

    node_key: NodeKey
    publication: int
    agent: str = ""
    """The agent that had the task; empty when no agent had it: the task is not lost if an agent began it since."""
    reason: Failure = DIED
    """Why the attempt that an agent had begun is lost; `DELIVERY_LOST` does not count as an attempt."""


@dataclass(frozen=True, slots=True)
class Show:
    """The order to send nodes' states in the ledger to RQ, because RQ's copy of the workflow may be missing or wrong.

    The answer names the nodes that are left for another `Show`.
    """

    workflow: str
    nodes: tuple[str, ...] = ()
    """The names of the nodes to send to RQ; empty for all nodes, unless the workflow has ended."""


@dataclass(frozen=True, slots=True)
class Look:
    """The request for the current snapshots of some nodes, to compare with RQ's copy of them; it changes nothing.

    The answer is a list of `NodeSnapshot` in the same order. It may end early, and another `Look` then asks for the
    remaining nodes; an empty list says that none of the nodes exists.
    """

    node_keys: tuple[NodeKey, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The values of a node's expressions, or why they have none; ignored if `token` shows that they are outdated."""

    node_key: NodeKey
    token: str
    inputs: Inputs | Failure


@dataclass(frozen=True, slots=True)
class Continue:
    """The order to continue changes, such as a large workflow's cancel, that did not fit into one transaction.

    The answer is False when the batch was full before any of that work was done.
    """


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The order to rebuild a shard after a loss of messages: publish its tasks again, unless the broker `kept` them.

    The answer is the last publication number before the rebuild.
    """

    marker: str
    occasion: str
    kept: bool = False
    """Whether the broker still has the shard's marker queue, so that agents keep the tasks that they have begun."""


Command: TypeAlias = (
    Finished
    | Began
    | Heard
    | Claimed
    | AgentFate
    | Asked
    | Due
    | Proposed
    | Fill
    | NoQueue
    | Lost
    | Show
    | Evaluated
    | Continue
    | Rebuild
    | Look
)
