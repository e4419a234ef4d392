"""A workflow's definition: nodes, and the edges into each of them. A frozen value that says nothing of any run.

::

    Definition
    └── nodes: Node          name, after (edges from its predecessors), join, when
        └── work: Call           one task for a capability
                  Each           the same call for every element of a list
                  Approval       a question to a person

Values here are as they were given. Whether they make sense together is checked by `graph.py`; how they are written
down is in `document.py`. Inputs are plain JSON in which `{"$from": "<expression>"}` stands for what the expression
finds (`template.py`); nobody changes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, TypeAlias

from coditect.errors import InputError
from coditect.model.capability import Priority
from coditect.model.retry import Retry
from coditect.model.value import value

MOST_NODES = 100_000
"""Of one workflow, its lists' elements not counted."""
MOST_ELEMENTS = 10_000
"""The highest limit that a map may state."""
MOST_PREDECESSORS = 10_000
"""Of one node: what is stored of its edges fits into one transaction."""
MOST_NAME_CHARACTERS = 100
LEAST_HEARTBEAT_MS = 45_000
"""An agent says every 20 s that a task still runs, and one word of it may be lost; the rest is for its way."""

Join: TypeAlias = Literal["all", "any"] | int
"""How many predecessors must be met: all of them, any one, or that many."""

_NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORKFLOW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class OnFailure(StrEnum):
    """What an edge does when its predecessor ended without a value."""

    FAIL = "fail"
    """The node ends alike, without having run."""
    SKIP = "skip"
    """The node is skipped."""
    ALLOW = "allow"
    """The node does not mind; also when the predecessor was skipped."""


class OnTimeout(StrEnum):
    """What an approval is when nobody answered in time."""

    REJECT = "reject"
    GRANT = "grant"


@value
class After:
    """An edge: the node comes after that one."""

    node: str
    on_failure: OnFailure = OnFailure.FAIL


@value
class Call:
    """One task for a capability."""

    capability: str
    input: Any = None
    """JSON with `{"$from": expression}` in it; None is an empty object."""
    priority: Priority = Priority.P1
    timeout_ms: int | None = None
    """Longest run of one attempt; the capability's own when None."""
    retry: Retry | None = None
    """The capability's own when None. Its `on` is the default: an exception is no data."""
    compensate: str | None = None
    """The capability that is to undo it when the workflow does not complete. Kept; nothing runs it yet."""
    start_within_ms: int | None = None
    """How long an attempt may wait unstarted from when it is ready; no bound when None."""
    deadline_ms: int | None = None
    """How long all of its attempts may take together, from when the first is ready; no bound when None."""
    heartbeat_ms: int | None = None
    """How long the agent that has it may be silent; when None, only what runs for over ten minutes is listened to."""


@dataclass(frozen=True, slots=True)
class Each:
    """The same call for every element of a list; its value is the list of their values, in order."""

    call: Call
    over: str
    """The expression that finds the list."""
    limit: int
    """A longer list is a failure, not a surprise."""


@dataclass(frozen=True, slots=True)
class Approval:
    """A question that a person answers from outside; it holds no slot and no message."""

    question: str
    timeout_ms: int | None = None
    """It waits for ever when None."""
    on_timeout: OnTimeout = OnTimeout.REJECT


Work: TypeAlias = Call | Each | Approval


@value
class Node:
    """One step, and what it comes after."""

    name: str
    work: Work
    after: tuple[After, ...] = ()
    join: Join = "all"
    when: str | None = None
    """An expression; when it finds nothing, false or something empty, the node is skipped."""

    @property
    def call(self) -> Call | None:
        """The task behind it, or behind each element; None for an approval."""
        match self.work:
            case Call() as call:
                return call
            case Each(call=call):
                return call
            case Approval():
                return None

    @property
    def needed(self) -> int:
        """How many of its edges must be met."""
        match self.join:
            case "all":
                return len(self.after)
            case "any":
                return min(1, len(self.after))
            case number:
                return number


@dataclass(frozen=True, slots=True)
class Definition:
    """A whole workflow."""

    name: str
    nodes: tuple[Node, ...]
    description: str = ""

    @property
    def to_compensate(self) -> tuple[str, ...]:
        """The nodes that name a capability to undo them, which nothing runs yet."""
        return tuple(node.name for node in self.nodes if node.call is not None and node.call.compensate is not None)


@lru_cache(maxsize=4096)
def check_node_name(name: str) -> str:
    """The name itself, if it is one: a word, so that an expression can say it without quotes.

    Raises: InputError otherwise.
    """
    return _checked(name, _NODE_NAME, "A node's name is a word of letters, digits and _, not beginning with a digit")


def check_workflow_name(name: str) -> str:
    """The name itself, if it is one. Raises: InputError otherwise."""
    return _checked(name, _WORKFLOW_NAME, "A workflow's name is letters, digits, dots, hyphens and _")


def _checked(name: str, pattern: re.Pattern[str], sentence: str) -> str:
    if len(name) > MOST_NAME_CHARACTERS or pattern.fullmatch(name) is None:
        raise InputError(sentence, given=name[:120], most_characters=MOST_NAME_CHARACTERS)
    return name
