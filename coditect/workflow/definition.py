"""A workflow's definition: nodes, and the edges into each node, as a frozen value without the state of any run.

::

    Definition
    └── nodes: Node          name, after (edges from its predecessors), join, when
        └── work: Call           one task for a capability
                  Each           the same call for every element of a list
                  Approval       a question to a person
                  WaitFor        a period of time, WaitUntil an instant
                  AwaitSignal    a signal by its name
                  SubWorkflow    a whole workflow of its own, by its name among the definition's `workflows`

A definition holds the values as given. `graph.py` checks whether they fit together; `document.py` writes them down.
Inputs are plain JSON in which `{"$from": "<expression>"}` stands for the value that the expression finds
(`template.py`), and are never changed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, NoReturn, Self, TypeAlias

from coditect.errors import InputError
from coditect.model.capability import Priority
from coditect.model.message import value
from coditect.model.retry import Retry

MAX_WORKFLOW_NODES = 100_000
"""The largest number of nodes in one workflow, not counting the elements of maps."""
MOST_ELEMENTS = 10_000
"""The largest number of elements that a map may allow for its list."""
MOST_PREDECESSORS = 10_000
"""The largest number of predecessors of one node, whose stored edges must fit into one transaction."""
MOST_CANCELED = 100
"""The largest number of predecessors of a node that cancels those that have not ended: all agents hear of each."""
MOST_NAME_CHARACTERS = 100
COMPENSATION = ".compensate"
"""The end of the name of the node that compensates another one: `ship.compensate` undoes `ship`."""
MOST_ARTIFACTS = 50
"""The largest number of artifacts that a gate may require."""
MOST_LABELS = 16
"""The largest number of labels of one workflow."""
LEAST_HEARTBEAT_MS = 45_000
"""The shortest heartbeat: agents report a running task every 20 s, and one report may be lost or late."""

Join: TypeAlias = Literal["all", "any"] | int
"""How many of a node's predecessors must be met: "all", "any" or a number."""

_NODE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WORKFLOW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class OnFailure(StrEnum):
    """The policy of an edge for a predecessor that ended without a value: fail, skip or allow."""

    FAIL = "fail"
    """The dependent node ends in the predecessor's state without having run."""
    SKIP = "skip"
    """The dependent node is skipped."""
    ALLOW = "allow"
    """The dependent node runs regardless, also when the predecessor was skipped."""


class Rest(StrEnum):
    """The policy for a node's predecessors that have not ended when the node may run: keep or cancel them."""

    KEEP = "keep"
    """They go on."""
    CANCEL = "cancel"


class OnTimeout(StrEnum):
    """The result of an approval that no person answered in time."""

    REJECT = "reject"
    GRANT = "grant"


@value
class After:
    """An edge from a predecessor into a node, with the policy for the predecessor's failure."""

    node: str
    on_failure: OnFailure = OnFailure.FAIL


@value
class Repeat:
    """The repetition of a task until an expression over its result holds; else the node fails after `most` runs."""

    until: str
    """The expression over `result`; the loop ends when its result is not null, false or empty."""
    most: int
    """The largest number of iterations; the node fails after them."""
    every_ms: int = 0
    """The pause between two iterations."""


@value
class Call:
    """The work of a task node: one task for a capability, with input and limits."""

    capability: str
    input: Any = None
    """The task's input: JSON that may hold `{"$from": expression}`; None is an empty object."""
    priority: Priority = Priority.P1
    timeout_ms: int | None = None
    """Longest run of one attempt; None means the capability's own timeout."""
    retry: Retry | None = None
    """The task's retry policy; None means the capability's own. Exceptions (`on`) keep the default."""
    compensate: str | None = None
    """The capability that undoes the completed task when the workflow does not complete."""
    start_within_ms: int | None = None
    """How long an attempt may wait for an agent after it became ready; None means without limit."""
    deadline_ms: int | None = None
    """How long all attempts may take together after the first became ready; None means without limit."""
    heartbeat_ms: int | None = None
    """How long the task's agent may be silent; None means a default that holds after ten minutes of run time."""
    repeat: Repeat | None = None
    """The task's loop; None means that the task is done once."""
    delay: int | str | None = None
    """The milliseconds, or the instant as text with its offset from UTC, that the first attempt waits for."""

    @property
    def undo(self) -> Call:
        """The call that compensates the completed task; only for a call that declares `compensate`."""
        assert self.compensate is not None
        return Call(self.compensate, priority=self.priority)


@dataclass(frozen=True, slots=True)
class Each:
    """The work of a map node: one call for every element of a list; the value is the list of the results, in order."""

    call: Call
    over: str | list[Any]
    """The expression that finds the list, or the list itself, which may hold `{"$from": expression}`."""
    limit: int
    """The largest number of elements in the list; a longer list fails the node."""


@dataclass(frozen=True, slots=True)
class Approval:
    """The work of an approval node: a question to a person; it holds no agent's slot and no message while it waits."""

    question: str
    timeout_ms: int | None = None
    """How long the approval waits for an answer; None means without limit."""
    on_timeout: OnTimeout = OnTimeout.REJECT
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """The expressions by names that must all find something before anybody is asked: then the approval is a gate."""


@dataclass(frozen=True, slots=True)
class WaitFor:
    """The work of a timer node: a period of time that begins when the predecessors permit the node to run."""

    period_ms: int


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """The work of a timer node that ends at an instant; an instant that has passed ends the node at once."""

    instant: Any
    """The instant as a text with its offset from UTC, or `{"$from": expression}` for an expression that finds one."""


@dataclass(frozen=True, slots=True)
class AwaitSignal:
    """The work of a signal node: it waits for a signal of a name, and takes the signal's value as its own."""

    signal: str
    timeout_ms: int | None = None
    """How long the node waits before it fails; None means without limit."""


@dataclass(frozen=True, slots=True)
class SubWorkflow:
    """The work of a node that runs another workflow as its child, and takes the child's result as its own."""

    workflow: str
    """The name of the child among the workflows of the definition."""
    input: Any = None
    """The child's input: JSON that may hold `{"$from": expression}`; None is an empty object."""
    retry: Retry | None = None
    """How often a child that failed is followed by a new one; None means not at all."""
    compensate: str | None = None
    """The capability that undoes the completed child; None means that the child undoes its own completed nodes."""

    @property
    def undo(self) -> Call | SubWorkflow:
        """The work that undoes the completed child: the named capability's task, or else undoing the child's nodes."""
        return self if self.compensate is None else Call(self.compensate)


Work: TypeAlias = Call | Each | Approval | WaitFor | WaitUntil | AwaitSignal | SubWorkflow


@value
class Node:
    """A step of a workflow: its work, its predecessors, and the conditions to run."""

    name: str
    work: Work
    after: tuple[After, ...] = ()
    join: Join = "all"
    when: str | None = None
    """An expression; the node is skipped when its result is null, false or empty."""
    rest: Rest = Rest.KEEP
    least: int | None = None
    """How many edges are enough once all predecessors have ended; None means as many as the join needs."""
    call: Call | None = field(init=False, repr=False, compare=False)
    """The task of a task node, or of each element of a map node; None for a node of another kind."""

    def __post_init__(self) -> None:
        work = self.work.call if isinstance(self.work, Each) else self.work
        object.__setattr__(self, "call", work if isinstance(work, Call) else None)

    @property
    def result(self) -> NodeResult:
        """The node's result, as a value for a later node: `flow.task("book.bind", {"pages": node.result["pages"]})`."""
        return NodeResult(f"results.{self.name}", self)

    @property
    def input(self) -> Any:
        """The input template of the node's task, of a map's tasks, or of its child workflow; None without an input."""
        work = self.call or self.work
        return work.input if isinstance(work, Call | SubWorkflow) else None

    @property
    def compensate(self) -> str | None:
        """The capability that undoes the node's completed work; None when the node names none."""
        work = self.call or self.work
        return work.compensate if isinstance(work, Call | SubWorkflow) else None

    @property
    def title(self) -> str:
        """The capability that the node calls, or else the node's kind: approval, wait, signal or workflow."""
        match self.work:
            case SubWorkflow():
                return "workflow"
            case Approval():
                return "approval"
            case AwaitSignal():
                return "signal"
            case WaitFor() | WaitUntil():
                return "wait"
            case Call(capability=capability) | Each(call=Call(capability=capability)):
                return capability

    @property
    def needed(self) -> int:
        """The number of incoming edges that must be met before the node may run, by its `join`: all, one or a count."""
        match self.join:
            case "all":
                return len(self.after)
            case "any":
                return min(1, len(self.after))
            case number:
                return number


@dataclass(frozen=True, slots=True)
class Definition:
    """A workflow as a frozen value: name, description, labels, retention, nodes with their edges, and sub-workflows."""

    name: str
    nodes: tuple[Node, ...]
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """The labels of each run of the workflow, by which `workflow list` finds it; the caller never changes them."""
    retention_ms: int | None = None
    """How long a run is kept after its end; None means as long as the dispatcher's setting says."""
    workflows: tuple[Definition, ...] = ()
    """The definitions that nodes run as children, here and in the children themselves; they hold none of their own."""


@lru_cache(maxsize=4096)
def check_node_name(name: str) -> str:
    """Check that a text is a node name, a word that an expression can use without quotes, and return the name.

    Raises:
        InputError: when the text is no such name.
    """
    return _checked(name, _NODE_NAME, "A node's name is a word of letters, digits and _, not beginning with a digit")


def defined_name(name: str) -> str:
    """Return the name of the node to which a map's element or a compensation belongs: `ship` for `ship[3]`."""
    return name.partition("[")[0].partition(".")[0]


def check_name(noun: str, name: str) -> str:
    """Check that a text is a name of the noun (workflow, signal or checkpoint), and return the name.

    Raises:
        InputError: when the text is no such name.
    """
    return _checked(name, _WORKFLOW_NAME, f"A {noun}'s name is letters, digits, dots, hyphens and _")


def _checked(name: str, pattern: re.Pattern[str], sentence: str) -> str:
    if len(name) > MOST_NAME_CHARACTERS or pattern.fullmatch(name) is None:
        raise InputError(sentence, given=name[:120], most_characters=MOST_NAME_CHARACTERS)
    return name


# Placeholders for values that exist only when a workflow runs: the results of nodes and of expressions.

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"""[A-Za-z_"][^|&!<>=(){}`*,?@]*""")
"""A plain path such as `results.a[0]."b c"`; a part of anything else is taken of the whole, in parentheses."""


@dataclass(frozen=True, slots=True)
class From:
    """A placeholder in an input for the result of a JMESPath expression over `input`, `results` and `states`.

    `From("input")["chapters"][0]` is a part of it.
    """

    expression: str

    def __getitem__(self, key: str | int) -> Self:
        """Return a placeholder for a field or an element of this placeholder's value."""
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise InputError("A part of a later value is named by a text or a number", given=repr(key)[:80])
        whole = self.expression if _PATH.fullmatch(self.expression) else f"({self.expression})"
        if isinstance(key, int):
            return replace(self, expression=f"{whole}[{key}]")
        return replace(self, expression=f"{whole}.{key if _WORD.fullmatch(key) else json.dumps(key)}")

    def __iter__(self) -> NoReturn:
        fix = "give it to `flow.map`, which runs a task for each element"
        raise InputError("Nobody can look through a value before the workflow runs", given=self.expression, fix=fix)


@dataclass(frozen=True, slots=True)
class NodeResult(From):
    """A placeholder for a node's result; a later node whose input holds it comes after that node."""

    node: Any
    """The node whose result it is."""
