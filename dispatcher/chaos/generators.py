"""Workflows of several shapes, drawn by the seed, and the facts about them for the history."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from types import MappingProxyType
from typing import Any

from coditect import After, From, Retry, Workflow
from coditect.model.capability import Priority
from coditect.workflow.builder import TaskOptions
from coditect.workflow.definition import Definition, Each, Node
from dispatcher.chaos.work import CAPABILITY

LONGEST_MILLISECONDS = 100_000
"""The longest task: five orders of magnitude above the shortest."""
SHORT = 3
"""The power of the draw of lengths, by which short tasks outnumber long ones.

A third of five orders is below 1.5 ms.
"""
MOST_ATTEMPTS = 12
"""The attempts of a node: a run kills faster than three attempts can bear."""
RETRY = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")
LIMITS = TaskOptions(start_within="1s", timeout="30s", deadline="3s", heartbeat="45s")
"""Limits that faults break, and the work itself does not."""
PRIORITIES: Mapping[Priority, int] = MappingProxyType({Priority.P0: 2, Priority.P1: 4, Priority.P2: 3})
"""The relative frequency of each priority."""
BROKEN = "broken"
"""The node that fails for good, until it is given another input."""
CHAIN = "chain"
"""The workflow in which each node is given the token of its predecessor."""
HOPELESS, SPARED = "hopeless", "spared"
"""The node whose attempts all fail, and the one that is skipped then."""
FEW_ATTEMPTS = 2
"""The attempts of the hopeless node."""
TAKEN, PASSED, BEHIND = "taken", "passed", "behind"
"""The node whose condition holds, the one whose does not, and the one behind that."""
MEANT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        HOPELESS: ("failed", "dead"),
        SPARED: ("skipped",),
        TAKEN: ("completed",),
        PASSED: ("skipped",),
        BEHIND: ("skipped",),
    }
)
"""The intended ends of nodes with a special purpose."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The amount, size and length of the work."""

    workflows: int
    """The number of workflows under way at once."""
    tasks: int
    """The number of direct tasks under way at once."""
    width: int
    """The number of nodes side by side, and in a row."""
    milliseconds: tuple[int, int]
    """The lengths of the shortest and the longest task; most are short, spread over the orders of magnitude between."""
    long: float = 0.0
    """The share of direct tasks that are longer than that, up to the longest of all; they have no successors."""
    soon_milliseconds: tuple[int, int] = (5, 1_500)
    """The time after its start at which a workflow is paused or canceled, and resumed."""
    flaky: float = 0.05
    """The share of tasks whose first attempt fails."""
    durable: float = 0.1
    """The share of tasks that the control plane keeps."""
    canceled: float = 0.1
    """The share of workflows that are canceled on the way."""
    paused: float = 0.1
    """The share of workflows that are paused and resumed on the way."""
    hopeless: float = 0.03
    """The share of direct tasks whose attempts all fail."""
    asked_again: float = 0.1
    """The share of keys that are sent a second time, once their work was accepted."""
    parents: int = 0
    """The number of direct tasks of a wave that await a child each; their children all end at about once."""
    elements: int = 0
    """The number of elements of a long map, of which one is under way at a time; 0 for none."""
    limited: float = 0.0
    """The share of nodes with limits of time so short that faults break them."""
    wait_seconds: float = 300.0
    """The time to wait for the end of a workflow; longer than the faults, which may hold it up until then."""
    task_seconds: float = 100.0
    """The time to wait for the end of a direct task."""
    patience_seconds: float = 10.0
    """The time after which the next task is begun beside it: the first may be lost with the broker's disk."""


def is_limited(definition: Definition) -> bool:
    """Return whether faults may make a workflow's node pass one of its time limits."""
    return any(node.call is not None and node.call.deadline_ms is not None for node in definition.nodes)


class Generators:
    """The generator of random workflows and tasks for a run."""

    def __init__(self, random: Random, pace: Pace) -> None:
        self._random = random
        self._pace = pace
        self._bag: list[Callable[[], Workflow]] = []

    def drawn(self) -> Workflow:
        """Return a random workflow; each shape comes before any comes again."""
        if not self._bag:
            self._bag = [
                self.layers,
                self.fan,
                self.chain,
                self.gate,
                self.spread,
                self.broken,
                self.choice,
                self.hopeless,
            ]
            self._random.shuffle(self._bag)
        return self._bag.pop()()

    def priority(self) -> Priority:
        """Return a random priority, by the shares in `PRIORITIES`."""
        return self._random.choices(list(PRIORITIES), list(PRIORITIES.values()))[0]

    def work(self) -> dict[str, Any]:
        """Return the random input of a workflow's task."""
        flaky = self._random.random() < self._pace.flaky
        return {"milliseconds": self._milliseconds(), "fails": int(flaky)}

    def direct_work(self) -> dict[str, Any]:
        """Return the random input of a direct task."""
        work = self.work()
        if self._pace.long and self._random.random() < self._pace.long:
            return {"milliseconds": self._random.randint(self._pace.milliseconds[1], LONGEST_MILLISECONDS), "fails": 0}
        return work

    def _milliseconds(self) -> int:
        shortest, longest = self._pace.milliseconds
        least = max(1, shortest)
        orders: float = self._random.random() ** SHORT
        return min(longest, round(math.exp(math.log(least) + orders * math.log(max(least, longest) / least))))

    def layers(self) -> Workflow:
        """Return layers of nodes, each after some of the layer before."""
        flow, before = Workflow("layers"), list[Node]()
        for _ in range(self._pace.width):
            layer = []
            for _ in range(self._pace.width):
                after = self._random.sample(before, min(len(before), 2))
                layer.append(self._node(flow, after))
            before = layer
        return flow

    def fan(self) -> Workflow:
        """Return one node, then many, then one after all of them."""
        flow = Workflow("fan")
        first = self._node(flow, [])
        many = [self._node(flow, [first]) for _ in range(2 * self._pace.width)]
        self._node(flow, many)
        return flow

    def chain(self) -> Workflow:
        """Return nodes in a row, each with the token of the one before."""
        flow = Workflow(CHAIN)
        last = self._node(flow, [])
        for _ in range(2 * self._pace.width):
            last = self._node(flow, [last], {"after": [From(f"results.{last.name}.token")]})
        return flow

    def gate(self) -> Workflow:
        """Return work, an approval, and a join that does not need all."""
        flow = Workflow("gate")
        first = [self._node(flow, []) for _ in range(2)]
        gate = flow.approval("go on?", after=first, name="gate", timeout="1h")
        sides = [self._node(flow, [gate]) for _ in range(self._pace.width)]
        flow.task(
            CAPABILITY,
            self.work(),
            after=[After(side.name, on_failure="allow") for side in sides],  # type: ignore[arg-type]
            name="any_of_them",
            join="any",
            priority=self.priority(),
            retry=RETRY,
        )
        return flow

    def spread(self) -> Workflow:
        """Return a map over a list, each element of its own length, and a node after all of them."""
        flow = Workflow("spread")
        first = self._node(flow, [])
        lengths = [self._milliseconds() for _ in range(self._pace.width)]
        elements = [{"name": str(number), "milliseconds": length} for number, length in enumerate(lengths)]
        given = {"after": [From("item.name")], "milliseconds": From("item.milliseconds")}
        return self._spread(flow, first, f"`{json.dumps(elements)}`", given, len(elements))

    def wide(self) -> Workflow:
        """Return a map over the workflow's input, a list of `Pace.elements` numbers, and a node after all of them."""
        flow = Workflow("wide")
        given = {"after": [From("to_string(item)")], "milliseconds": 1, "fails": 0}
        return self._spread(flow, self._node(flow, []), "input", given, self._pace.elements)

    def _spread(self, flow: Workflow, first: Node, over: str, given: Mapping[str, Any], many: int) -> Workflow:
        elements = flow.map(
            CAPABILITY,
            over,
            self.work() | dict(given),
            limit=many,
            after=[first],
            name="many",
            priority=self.priority(),
            retry=RETRY,
        )
        self._node(flow, [elements])
        return flow

    def broken(self) -> Workflow:
        """Return three nodes in a row, of which the second fails for good until it is redriven."""
        flow = Workflow("broken")
        first = self._node(flow, [])
        broken = flow.task(CAPABILITY, self.work() | {"broken": True}, after=[first], name=BROKEN, retry=RETRY)
        self._node(flow, [broken])
        return flow

    def choice(self) -> Workflow:
        """Return a node, one whose condition holds, one whose does not with one behind it, and one after all."""
        flow = Workflow("choice")
        first = self._node(flow, [])
        for name, holds in ((TAKEN, "!="), (PASSED, "==")):
            when = f"results.{first.name}.token {holds} 'none'"
            flow.task(CAPABILITY, self.work(), after=[first], name=name, when=when, retry=RETRY)
        behind = flow.task(CAPABILITY, self.work(), after=[PASSED], name=BEHIND, retry=RETRY)
        edges = [After(name, on_failure="allow") for name in (TAKEN, behind.name)]  # type: ignore[arg-type]
        flow.task(CAPABILITY, self.work(), after=edges, name="last", retry=RETRY)
        return flow

    def hopeless(self) -> Workflow:
        """Return a node whose attempts all fail, one that is skipped because of that, and one that runs anyway."""
        flow = Workflow("hopeless")
        first = self._node(flow, [])
        retry = replace(RETRY, max_attempts=FEW_ATTEMPTS)
        flow.task(CAPABILITY, self.work() | {"fails": 99}, after=[first], name=HOPELESS, retry=retry)
        for name, policy in ((SPARED, "skip"), ("all_the_same", "allow")):
            edge = After(HOPELESS, on_failure=policy)  # type: ignore[arg-type]
            flow.task(CAPABILITY, self.work(), after=[edge], name=name, retry=RETRY)
        return flow

    def _node(self, flow: Workflow, after: list[Node], more: Mapping[str, Any] | None = None) -> Node:
        work = self.work() | dict(more or {})
        options = TaskOptions(after=after, name=f"n{len(flow._nodes)}", priority=self.priority(), retry=RETRY)
        if self._pace.limited and self._random.random() < self._pace.limited:
            options |= LIMITS
        return flow.task(CAPABILITY, work, **options)

    def told(self, definition: Definition) -> dict[str, Any]:
        """Return the facts about a workflow's nodes for the history, by the names under which nodes are executed."""
        names = {node.name: self._executed(node) for node in definition.nodes}
        nodes: dict[str, list[str]] = {}
        priorities: dict[str, str] = {}
        for node in definition.nodes:
            before = [one for edge in node.after for one in names[edge.node]]
            nodes |= dict.fromkeys(names[node.name], before)
            if node.call is not None:
                priorities |= dict.fromkeys(names[node.name], node.call.priority.value)
        joins = {node.name: node.needed for node in definition.nodes if node.needed < len(node.after)}
        return {
            "nodes": nodes,
            "joins": joins,
            "priorities": priorities,
            "levels": priorities,
            "most": MOST_ATTEMPTS,
            "few": {HOPELESS: FEW_ATTEMPTS} if HOPELESS in nodes else {},
            "meant": {name: states for name, states in MEANT.items() if name in nodes},
            "inputs": self._inputs(definition),
        }

    def _inputs(self, definition: Definition) -> dict[str, list[str]]:
        """Return the inputs: of an element its item, in a chain the name of the node whose token is given."""
        inputs: dict[str, list[str]] = {}
        for node in definition.nodes:
            if isinstance(node.work, Each):
                inputs |= {name: [str(number)] for number, name in enumerate(self._executed(node))}
            elif definition.name == CHAIN and node.after:
                inputs[node.name] = [edge.node for edge in node.after]
            elif node.call is not None:
                inputs[node.name] = []
        return inputs

    def _executed(self, node: Node) -> list[str]:
        """Return the names under which a node is executed; a map is executed as its elements."""
        if not isinstance(node.work, Each):
            return [node.name]
        return [f"{node.name}[{number}]" for number in range(node.work.limit)]
