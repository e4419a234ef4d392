"""The builder of workflows in Python: a call such as `task` adds a node and returns it for later nodes to follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, TypedDict, TypeVar, Unpack

from coditect.errors import InputError
from coditect.model import arguments
from coditect.model.capability import Priority
from coditect.model.duration import Duration
from coditect.model.retry import Retry
from coditect.workflow import fields
from coditect.workflow.definition import (
    MOST_NAME_CHARACTERS,
    After,
    Approval,
    AwaitSignal,
    Call,
    Definition,
    Each,
    From,
    Join,
    Node,
    NodeResult,
    OnFailure,
    OnTimeout,
    Repeat,
    Rest,
    SubWorkflow,
    WaitFor,
    WaitUntil,
    Work,
    check_name,
    check_node_name,
)
from coditect.workflow.graph import check_definition

T = TypeVar("T")


class Placing(TypedDict, total=False):
    """The options of every node's place in the graph: name, predecessors, join, condition, failure policy."""

    name: str
    """The node's name; by default derived from the capability or the question."""
    after: Sequence[Node | After | str]
    """The predecessors: nodes, names, or `After(name, on_failure=...)`; a name may belong to a later node.

    A node whose `result` the input, the condition or the list uses is a predecessor without being named here.
    """
    join: Join
    """How many predecessors must be met before the node runs: all (default), any, or a number."""
    rest: Rest | str
    """What becomes of the predecessors that have not ended when the node may run: `"keep"` (default) or `"cancel"`."""
    least: int
    """How many met predecessors are enough once all have ended; default: as many as `join` needs."""
    when: str | From
    """An expression; the node is skipped when its result is null, false or empty."""
    on_failure: OnFailure | str
    """The failure policy of this node's edges that name no policy of their own; default: fail."""


class TaskOptions(Placing, total=False):
    """The options of a node that runs a task, or a map's tasks: its place in the graph, and how a task is executed."""

    priority: Priority | str
    timeout: Duration
    """Longest run of one attempt; default: the capability's own."""
    start_within: Duration
    """How long an attempt may wait unstarted; default: for ever."""
    deadline: Duration
    """How long all attempts may take together, from when the node is ready; default: for ever."""
    heartbeat: Duration
    """How long the task's agent may be silent, at least 45 s; default: a minute, after the task's first ten minutes."""
    retry: Retry
    """The retry policy of the task; default: the capability's own."""
    compensate: str
    """The capability that undoes the completed task when the workflow does not complete: see docs/compensation.md."""
    repeat: Repeat | Mapping[str, Any]
    """The task's loop, such as `{"until": "result.done", "most": 20, "every": "10s"}`; default: done once."""
    delay: Duration | datetime | str
    """What the first attempt waits for, once the node may run: a duration, or an instant; not for a map."""


class Workflow:
    """A builder of a workflow, which `definition` returns as a frozen value; building executes nothing.

    Every method raises InputError for invalid arguments.
    """

    input: ClassVar[From] = From("input")
    """The workflow's own input, as a value for its nodes: `flow.input["chapters"]`."""
    item: ClassVar[From] = From("item")
    """The element of the list, as a value in the input of a map."""

    def __init__(
        self,
        name: str,
        *,
        description: str = "",
        labels: Mapping[str, str] | None = None,
        retention: Duration | None = None,
    ) -> None:
        """Begin to define a workflow; its runs get the `labels`, and are kept for the `retention` after their end."""
        self._name = check_name("workflow", name)
        self._description = fields.text(description)
        self._labels = fields.labels(labels or {})
        self._retention_ms = _given(fields.duration_ms, retention)
        self._nodes: dict[str, Node] = {}
        self._numbers: dict[str, int] = {}
        self._children: dict[str, Definition] = {}

    def task(self, capability: str, input: Any = None, **options: Unpack[TaskOptions]) -> Node:
        """Add a node that runs a task; its `input` may hold `node.result` and `From(expression)`.

        The node comes after every node whose result its input has.
        """
        used: list[From] = []
        placing, call = _call(capability, input, options, used.append)
        return self._add(call, capability, placing, used)

    def map(
        self,
        capability: str,
        over: str | From | Sequence[Any],
        input: Any = None,
        *,
        limit: int | None = None,
        **options: Unpack[TaskOptions],
    ) -> Node:
        """Add a node that runs a task for each element of a list: `over` is the list, or an expression that finds it.

        A list longer than `limit` fails the node; a list that is given here needs no limit.
        """
        used: list[From] = []
        placing, call = _call(capability, input, options, used.append)
        if call.delay is not None:
            raise InputError("A map has no delay", given=options["delay"], fix="let it come after flow.wait(...)")
        listed = fields.over(over, used.append)
        if limit is None and isinstance(listed, list):
            limit = max(1, len(listed))
        return self._add(Each(call, listed, fields.limit(limit)), capability, placing, used)

    def approval(
        self,
        question: str,
        *,
        timeout: Duration | None = None,
        on_timeout: OnTimeout | str = OnTimeout.REJECT,
        artifacts: Mapping[str, str | From] | None = None,
        **placing: Unpack[Placing],
    ) -> Node:
        """Add a node that waits until a person grants or denies an approval, a policy decides it, or its timeout ends.

        With `artifacts`, expressions by names such as `{"tests": tests.result["passed"]}`, the node is a gate: where
        one of them finds nothing, it is rejected, and nobody is asked.
        """
        waits, required = None if timeout is None else fields.duration_ms(timeout), artifacts or {}
        answers = (fields.some_text(question), waits, fields.one_of(OnTimeout)(on_timeout))
        work = Approval(*answers, fields.artifacts(required))
        return self._add(work, question, _placed(placing, "timeout"), [*required.values()])

    def wait(self, period: Duration, **placing: Unpack[Placing]) -> Node:
        """Add a node that waits for a period of time, from when its predecessors permit it to run."""
        return self._add(WaitFor(fields.duration_ms(period)), "wait", _placed(placing))

    def wait_until(self, instant: str | datetime | From, **placing: Unpack[Placing]) -> Node:
        """Add a node that waits until an instant, given with its offset from UTC or found by an expression."""
        return self._add(WaitUntil(fields.instant(instant)), "wait_until", _placed(placing), [instant])

    def signal(self, signal: str, *, timeout: Duration | None = None, **placing: Unpack[Placing]) -> Node:
        """Add a node that waits for a signal of the given name, and fails when its timeout ends before."""
        waits = None if timeout is None else fields.duration_ms(timeout)
        return self._add(AwaitSignal(fields.signal(signal), waits), signal, _placed(placing, "timeout"))

    def workflow(
        self,
        child: Workflow | Definition | str,
        input: Any = None,
        *,
        retry: Retry | None = None,
        compensate: str | None = None,
        **placing: Unpack[Placing],
    ) -> Node:
        """Add a node that runs another workflow as its child, with `input` as its input.

        A name stands for this workflow itself, or for a child that was given before.
        """
        used: list[From] = []
        name = check_name("workflow", child) if isinstance(child, str) else self._take_in(child)
        template = None if input is None else fields.template(input, used.append)
        work = SubWorkflow(name, template, _given(fields.retry, retry), _given(fields.capability, compensate))
        return self._add(work, name, _placed(placing), used)

    def _take_in(self, child: Workflow | Definition) -> str:
        """Add the definitions of a child workflow and of its own children to this one; return the child's name."""
        made = child.definition() if isinstance(child, Workflow) else child
        for definition in (*made.workflows, replace(made, workflows=())):
            if self._children.setdefault(definition.name, definition) != definition or definition.name == self._name:
                raise InputError(
                    "Two workflows have one name", given=definition.name, fix="give the child a name of its own"
                )
        return made.name

    def definition(self) -> Definition:
        """Return the workflow built so far as a frozen definition.

        Raises:
            InvalidWorkflow: when the nodes do not form a valid graph: a cycle, an unknown name, no node at all.
        """
        made = self.unchecked()
        check_definition(made)
        return made

    def unchecked(self) -> Definition:
        """Return the workflow built so far for a caller that checks the definition itself."""
        nodes, children = tuple(self._nodes.values()), tuple(self._children.values())
        return Definition(self._name, nodes, self._description, self._labels, self._retention_ms, children)

    def _add(self, work: Work, title: str, place: _Place, used: Sequence[object] = ()) -> Node:
        name = self._free_name(title) if place.name is None else check_node_name(place.name)
        if name in self._nodes:
            raise InputError("There is a node of this name", given=name, fix="give each node a name of its own")
        if isinstance(place.after, str) or not isinstance(place.after, Iterable):
            raise InputError("`after` is a list of nodes", given=repr(place.after)[:80], fix="after=[one, other]")
        edges = [self._edge(predecessor, place.on_failure) for predecessor in place.after]
        named = {edge.node for edge in edges}
        for node_name in dict.fromkeys(result.node.name for result in self._results((*used, place.when))):
            edges += [] if node_name in named else [self._edge(node_name, place.on_failure)]
        when = None if place.when is None else fields.expression(place.when)
        waits = fields.one_of(Rest)(place.rest), _given(fields.least, place.least)
        node = self._nodes[name] = Node(name, work, tuple(edges), fields.join(place.join), when, *waits)
        return node

    def _results(self, used: Iterable[object]) -> Iterator[NodeResult]:
        for result in used:
            if isinstance(result, NodeResult):
                if self._nodes.get(result.node.name) is not result.node:
                    fix = "use the result of a node that this workflow's own calls returned"
                    raise InputError("This result is of another workflow's node", given=result.node.name, fix=fix)
                yield result

    def _edge(self, after: Node | After | str, on_failure: OnFailure | str) -> After:
        policy = fields.one_of(OnFailure)
        match after:
            case Node(name=name) if self._nodes.get(name) is not after:
                raise InputError("This node is of another workflow", given=name, fix="use what this one returned")
            case Node(name=name) | str(name):
                return After(name, policy(on_failure))
            case After(node=str(name), on_failure=own):
                return After(name, policy(own))
            case _:
                raise InputError(
                    "This is no predecessor", given=repr(after)[:80], fix="what an earlier call returned, or a name"
                )

    def _free_name(self, title: str) -> str:
        """Derive an unused node name from a title; the second and later nodes of a title get a number."""
        word = re.sub(r"\W+", "_", title.lower(), flags=re.ASCII).strip("_")[: MOST_NAME_CHARACTERS - 8] or "node"
        word = f"n{word}" if word[0].isdigit() else word
        if word not in self._nodes:
            return word
        number = self._numbers.get(word, 1) + 1
        while f"{word}_{number}" in self._nodes:
            number += 1
        self._numbers[word] = number
        return f"{word}_{number}"


@dataclass(frozen=True, slots=True)
class _Place:
    """The options of a node's place in the graph, with their defaults; unknown options are refused."""

    name: str | None = None
    after: Sequence[Node | After | str] = ()
    join: Join = "all"
    when: str | From | None = None
    on_failure: OnFailure | str = OnFailure.FAIL
    rest: Rest | str = Rest.KEEP
    least: int | None = None


_OWN = TaskOptions.__annotations__.keys() - Placing.__annotations__.keys()
"""The options of a task node that no other kind of node has."""


def _placed(placing: Placing, *own: str) -> _Place:
    """Return where a node is placed; `own` are the names of its further options, to which an error may point."""
    arguments.check_names("A node of a workflow", placing, (*own, *Placing.__annotations__))
    return _Place(**placing)


def _given(read: Callable[[object], T], value: object) -> T | None:
    return None if value is None else read(value)


def _call(capability: str, input: Any, options: TaskOptions, met: fields.Met) -> tuple[_Place, Call]:
    arguments.check_names("A task of a workflow", options, TaskOptions.__annotations__)
    placing: dict[str, Any] = dict(options)
    own = {name: placing.pop(name) for name in _OWN if name in placing}
    call = Call(
        fields.capability(capability),
        None if input is None else fields.template(input, met),
        fields.priority(own.get("priority", Priority.P1)),
        _given(fields.duration_ms, own.get("timeout")),
        _given(fields.retry, own.get("retry")),
        _given(fields.capability, own.get("compensate")),
        _given(fields.duration_ms, own.get("start_within")),
        _given(fields.duration_ms, own.get("deadline")),
        _given(fields.heartbeat_ms, own.get("heartbeat")),
        _given(fields.repeat, own.get("repeat")),
        _given(fields.task_delay, own.get("delay")),
    )
    return _Place(**placing), call
