"""What is said to a shard: everything that may change its workflows, as values.

Each is idempotent by a natural key, since a transaction may be repeated and a message may come twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from coditect.model.result import Failure, Outcome, Status
from coditect.model.value import value
from coditect.wire.control import Started, Verb
from coditect.wire.json import dumps
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.attempts import MOST_MESSAGE, UNRECORDABLE
from dispatcher.ledger.nodes.inputs import Inputs
from dispatcher.ledger.timers import Timer


@value
class Finished:
    """An agent told how an attempt ended, or the broker gave up a publication. Once per fence."""

    node_key: NodeKey
    fence: int
    """0 when it is about the publication, whichever attempt of it was granted last."""
    publication: int
    outcome: Outcome
    retry_ms: int | None = None
    """When the capability's own policy would try again; None: not any more."""
    free: bool = False
    """Whether its agent would start another of its kind at once, and the broker has none for it."""

    @property
    def is_unrecorded(self) -> bool:
        """Whether it stands for an end that could not be recorded."""
        return self.outcome.failure is not None and self.outcome.failure.reason == UNRECORDABLE

    def unrecorded(self, error: Exception) -> Finished:
        """The same attempt, failed: how it ended cannot be recorded."""
        fix = "look at the message in the queue `unrouted`, and at the dispatcher's log"
        failure = Failure(UNRECORDABLE, type(error).__name__, str(error)[:MOST_MESSAGE], retryable=True, fix=fix)
        outcome = Outcome(Status.FAILED, dumps(failure.as_json()), None, None, failure=failure)
        return replace(self, outcome=outcome, retry_ms=None, free=False)


@dataclass(frozen=True, slots=True)
class Began:
    """An agent told that an attempt runs, or still runs."""

    started: Started


@dataclass(frozen=True, slots=True)
class Heard:
    """An agent says that an attempt runs of which memory knows nothing."""

    node_key: NodeKey
    fence: int


@value
class Claimed:
    """An agent asks whether it may run a task that was delivered before, or waited long. Answered with a claim."""

    node_key: NodeKey
    publication: int
    agent: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A request of a client about a workflow of this shard. Answered with an object."""

    verb: Verb
    body: Mapping[str, Any]
    identity: str = ""
    """The same for a request that comes again, and for no other; empty when it cannot be told from another."""


@dataclass(frozen=True, slots=True)
class Due:
    """A timer's instant has come."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class Proposed:
    """RQ says that these nodes may run. Answered with how many were claimed; `Effects.proposed` are not looked at."""

    node_keys: tuple[NodeKey, ...]
    room: str = ""
    """The capability in whose window room is kept for each of them; empty when none is."""


@dataclass(frozen=True, slots=True)
class Fill:
    """Claim so many of this capability from the ready index; room is kept for them.

    Answered with whether there may be more.
    """

    capability: str
    room: int


@dataclass(frozen=True, slots=True)
class PublicationReturned:
    """A publication came back: nobody consumes the capability."""

    node_key: NodeKey
    publication: int


@dataclass(frozen=True, slots=True)
class Lost:
    """What was published, or its agent, is gone: publish anew if the node still is where it was lost."""

    node_key: NodeKey
    publication: int
    agent: str = ""
    """Who had it; empty when nobody did: what an agent has begun by now is not lost then."""


@dataclass(frozen=True, slots=True)
class Show:
    """The copy of this workflow's graph is missing or wrong: its nodes are to be shown as they are."""

    workflow: str
    nodes: tuple[str, ...] = ()
    """Only these; empty for all, unless the workflow has ended. Answered with those that are left for another one."""


@dataclass(frozen=True, slots=True)
class Look:
    """How these nodes are, for a comparison; changes nothing.

    Answered with a list of `Shown`, in the same order. Those behind the last of it may be left for another one, unless
    it is empty: then there is none of them.
    """

    node_keys: tuple[NodeKey, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a node's expressions say, or why they say nothing. Once per `token`, as `Effects.evaluations` gave it."""

    node_key: NodeKey
    token: str
    told: Inputs | Failure


@dataclass(frozen=True, slots=True)
class GoOn:
    """Work is left over from earlier transactions. Answered with False when the turn was full before any of it."""


@dataclass(frozen=True, slots=True)
class Rebuild:
    """What was published may not be with the broker any more: it is published anew. Once per marker and occasion.

    Answered with the last publication number before it.
    """

    marker: str
    occasion: str
    kept: bool = False
    """The broker is the one that the shard was built on: what agents have begun is left to them."""


Command: TypeAlias = (
    Finished
    | Began
    | Heard
    | Claimed
    | Asked
    | Due
    | Proposed
    | Fill
    | PublicationReturned
    | Lost
    | Show
    | Evaluated
    | GoOn
    | Rebuild
    | Look
)
