"""The generators of random workflows and tasks for a chaos run, and of what checks must know about each workflow."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from chaos.load.pace import Pace
from chaos.load.policy import ALLOWED, ASKED, FORBIDDEN, LEARNING, POLICED, ROUTINE, RULES, UNREACHED
from chaos.load.policy import MEANT as MEANT_BY_POLICY
from chaos.load.work import CAPABILITY, UNDO, UNDO_ATTEMPTS
from coditect import After, From, Retry, Workflow
from coditect.model.capability import Priority
from coditect.workflow.builder import TaskOptions
from coditect.workflow.definition import COMPENSATION, AwaitSignal, Definition, Each, Node, WaitFor

LONGEST_MILLISECONDS = 100_000
"""The length of the longest task: five orders of magnitude above the shortest."""
SHORT = 3
"""The exponent of the random task length; the larger it is, the more tasks are short.

With 3, a third of the tasks takes below 1.5 ms.
"""
MOST_ATTEMPTS = 12
"""The number of attempts that each node of a workflow has, enough for the faults of a run."""
RETRY = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")
LIMITS = TaskOptions(start_within="1s", timeout="30s", deadline="3s", heartbeat="45s")
"""The time limits of a limited node, which are passed only when a fault delays the node."""
PRIORITIES: Mapping[Priority, int] = {Priority.P0: 2, Priority.P1: 4, Priority.P2: 3}
"""The relative frequency of each task priority in a run's load."""
BROKEN = "broken"
"""The name of the node that fails for good, until a redrive gives it another input."""
CHAIN = "chain"
"""The name of the workflow in which each node gets the token of its predecessor as input."""
DOOMED = "doomed"
"""The name of the node that fails for good, so that the nodes before it are compensated."""
PAUSE, SIGNAL, HEARD = "pause", "go", "heard"
"""The names of the node that waits for a time, of the signal that two nodes await, and of the node that is given both.

The two nodes are named after the signal.
"""
SIGNALS = 2
EVERY_SECONDS = 1
"""The period of a schedule."""
TICKED = "ticked"
"""The name of the only node of a schedule's workflow, which is given the tick."""
HOPELESS, SPARED = "hopeless", "spared"
"""The names of the node whose attempts all fail, and of its successor, which is then skipped."""
FEW_ATTEMPTS = 2
"""The number of attempts of the node or task whose attempts all fail."""
TAKEN, PASSED, BEHIND = "taken", "passed", "behind"
"""The names of the node whose condition holds, the node whose condition fails, and its successor."""
MEANT: Mapping[str, tuple[str, ...]] = {
    HOPELESS: ("failed", "dead"),
    SPARED: ("skipped",),
    TAKEN: ("completed",),
    PASSED: ("skipped",),
    BEHIND: ("skipped",),
}
"""The states in which a node with a special purpose must end, by its name."""


def is_limited(definition: Definition) -> bool:
    """Tell whether a workflow has nodes with a deadline, which faults may make it miss."""
    return any(node.call is not None and node.call.deadline_ms is not None for node in definition.nodes)


class Generators:
    """The generator of random workflows and task inputs for a chaos run."""

    def __init__(self, random: Random, pace: Pace) -> None:
        self._random = random
        self._pace = pace
        self._bag: list[Callable[[], Workflow]] = []

    def drawn(self) -> Workflow:
        """Return a random workflow of one of ten kinds; each kind comes once before any comes again."""
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
                self.saga,
                self.waits,
            ]
            self._random.shuffle(self._bag)
        return self._bag.pop()()

    def priority(self) -> Priority:
        """Return a random priority, with the relative frequencies 2 for P0, 4 for P1 and 3 for P2."""
        return self._random.choices(list(PRIORITIES), list(PRIORITIES.values()))[0]

    def work(self) -> dict[str, Any]:
        """Return a random input for a node of a workflow: how long it works, and whether its first attempt fails."""
        flaky = self._random.random() < self._pace.flaky
        return {"milliseconds": self._milliseconds(), "fails": int(flaky)}

    def direct_work(self) -> dict[str, Any]:
        """Return a random input for a direct task, which may work longer than a workflow's node."""
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
        """Return a workflow of several layers, each node after up to two nodes of the layer before."""
        flow, before = Workflow("layers"), list[Node]()
        for _ in range(self._pace.width):
            layer = []
            for _ in range(self._pace.width):
                after = self._random.sample(before, min(len(before), 2))
                layer.append(self._node(flow, after))
            before = layer
        return flow

    def fan(self) -> Workflow:
        """Return a workflow of one node, many parallel nodes after it, and one node after all of them."""
        flow = Workflow("fan")
        first = self._node(flow, [])
        many = [self._node(flow, [first]) for _ in range(2 * self._pace.width)]
        self._node(flow, many)
        return flow

    def chain(self) -> Workflow:
        """Return a workflow of nodes in a row; each later node gets the token in its predecessor's result as input."""
        flow = Workflow(CHAIN)
        last = self._node(flow, [])
        for _ in range(2 * self._pace.width):
            last = self._node(flow, [last], {"after": [From(f"results.{last.name}.token")]})
        return flow

    def gate(self) -> Workflow:
        """Return a workflow of two tasks, an approval, parallel tasks, and a last task that needs only one of them."""
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
        """Return a workflow with a map over a list, each element with its own duration, and a node after the map."""
        flow = Workflow("spread")
        first = self._node(flow, [])
        lengths = [self._milliseconds() for _ in range(self._pace.width)]
        elements = [{"name": str(number), "milliseconds": length} for number, length in enumerate(lengths)]
        given = {"after": [From("item.name")], "milliseconds": From("item.milliseconds")}
        return self._spread(flow, first, f"`{json.dumps(elements)}`", given, len(elements))

    def wide(self) -> Workflow:
        """Return a workflow with a map over its input, a list of `Pace.elements` numbers, and a node after the map."""
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
        """Return a workflow of three nodes in a row, of which the second fails for good until it is redriven."""
        flow = Workflow("broken")
        first = self._node(flow, [])
        broken = flow.task(CAPABILITY, self.work() | {"broken": True}, after=[first], name=BROKEN, retry=RETRY)
        self._node(flow, [broken])
        return flow

    def choice(self) -> Workflow:
        """Return a workflow with a node whose condition holds and a node whose condition does not hold."""
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
        """Return a workflow with a node whose attempts all fail, a successor that is skipped, and one that runs."""
        flow = Workflow("hopeless")
        first = self._node(flow, [])
        retry = replace(RETRY, max_attempts=FEW_ATTEMPTS)
        flow.task(CAPABILITY, self.work() | {"fails": 99}, after=[first], name=HOPELESS, retry=retry)
        for name, policy in ((SPARED, "skip"), ("all_the_same", "allow")):
            edge = After(HOPELESS, on_failure=policy)  # type: ignore[arg-type]
            flow.task(CAPABILITY, self.work(), after=[edge], name=name, retry=RETRY)
        return flow

    def saga(self) -> Workflow:
        """Return a workflow of nodes in a row, of which the last fails for good, and all others are then undone."""
        flow, last = Workflow("saga"), list[Node]()
        for number in range(self._pace.width):
            options = TaskOptions(after=last, name=f"n{number}", retry=RETRY, priority=self.priority(), compensate=UNDO)
            last = [flow.task(CAPABILITY, self.work(), **options)]
        flow.task(CAPABILITY, self.work() | {"broken": True}, after=last, name=DOOMED, retry=RETRY)
        return flow

    def waits(self) -> Workflow:
        """Return a workflow in which a node waits for a time, two wait for signals, and a last one gets the signals."""
        flow = Workflow("waits")
        first = self._node(flow, [])
        pause = flow.wait(f"{self._random.randint(*self._pace.wait_milliseconds)}ms", after=[first], name=PAUSE)
        self._node(flow, [pause])
        signals, before = list[Node](), first
        for number in range(SIGNALS):
            before = flow.signal(SIGNAL, after=[before], name=f"{SIGNAL}_{number}")
            signals.append(before)
        given = {"after": [From(f"results.{node.name}") for node in signals]}
        flow.task(CAPABILITY, self.work() | given, after=signals, name=HEARD, retry=RETRY)
        return flow

    def policed(self) -> Workflow:
        """Return a workflow whose nodes the run's approval policy allows, asks about, learns to allow, and forbids."""
        flow = Workflow(POLICED)
        first = self._node(flow, [])
        gates = [
            flow.task(CAPABILITY, self.work(), after=[first], name=name, priority=self.priority(), retry=RETRY)
            for name in (ALLOWED, ASKED, LEARNING)
        ]
        made = {"made": gates[0].result["token"]}
        gates.append(flow.approval("go on?", after=[gates[0]], name=ROUTINE, timeout="1h", artifacts=made))
        self._node(flow, gates)
        flow.task(CAPABILITY, self.work(), after=[first], name=FORBIDDEN, retry=RETRY)
        edge = After(FORBIDDEN, on_failure="skip")  # type: ignore[arg-type]
        flow.task(CAPABILITY, self.work(), after=[edge], name=UNREACHED, retry=RETRY)
        return flow

    def ticking(self, name: str) -> Workflow:
        """Return a schedule's workflow: one node, which gets the tick as input, and works for one period at most."""
        flow, work = Workflow(name), self.work()
        work["milliseconds"] = min(work["milliseconds"], EVERY_SECONDS * 1000)
        flow.task(CAPABILITY, work | {"after": [From("input")]}, name=TICKED, retry=RETRY)
        return flow

    def _node(self, flow: Workflow, after: list[Node], more: Mapping[str, Any] | None = None) -> Node:
        work = self.work() | dict(more or {})
        options = TaskOptions(after=after, name=f"n{len(flow._nodes)}", priority=self.priority(), retry=RETRY)
        if self._pace.limited and self._random.random() < self._pace.limited:
            options |= LIMITS
        return flow.task(CAPABILITY, work, **options)

    def told(self, definition: Definition) -> dict[str, Any]:
        """Return the facts that checks need about a workflow, such as predecessors, and expected inputs and states."""
        names = {node.name: self._executed(node) for node in definition.nodes}
        nodes: dict[str, list[str]] = {}
        priorities: dict[str, str] = {}
        for node in definition.nodes:
            before = [one for edge in node.after for one in names[edge.node]]
            nodes |= dict.fromkeys(names[node.name], before)
            if node.call is not None:
                priorities |= dict.fromkeys(names[node.name], node.call.priority.value)
        undo = [node.name for node in definition.nodes if node.call is not None and node.call.compensate]
        nodes |= {f"{name}{COMPENSATION}": [name] for name in undo}
        priorities |= {f"{name}{COMPENSATION}": priorities[name] for name in undo}
        joins = {node.name: node.needed for node in definition.nodes if node.needed < len(node.after)}
        return {
            "nodes": nodes,
            "joins": joins,
            "priorities": priorities,
            "levels": priorities,
            "most": MOST_ATTEMPTS,
            "few": dict.fromkeys((f"{name}{COMPENSATION}" for name in undo), UNDO_ATTEMPTS)
            | ({HOPELESS: FEW_ATTEMPTS} if HOPELESS in nodes else {}),
            "undo": undo,
            "timers": self._timers(definition),
            "signals": [node.name for node in definition.nodes if isinstance(node.work, AwaitSignal)],
            "meant": {name: states for name, states in (dict(MEANT) | dict(MEANT_BY_POLICY)).items() if name in nodes},
            "inputs": self._inputs(definition),
            "approved": [ROUTINE] if definition.name == POLICED else [],
            "policed": {name: name for name in RULES if definition.name == POLICED},
        }

    def _timers(self, definition: Definition) -> dict[str, list[Any]]:
        """Return, for each node that waits for a time, its milliseconds, its predecessor and its successor."""
        after = {edge.node: node.name for node in definition.nodes for edge in node.after}
        return {
            node.name: [node.work.period_ms, node.after[0].node, after[node.name]]
            for node in definition.nodes
            if isinstance(node.work, WaitFor)
        }

    def _inputs(self, definition: Definition) -> dict[str, list[str]]:
        """Return by node what its input must name: a map element's number, the predecessor in a chain, or nothing.

        Nodes that are given signals or ticks are left out.
        """
        inputs: dict[str, list[str]] = {}
        for node in definition.nodes:
            if isinstance(node.work, Each):
                inputs |= {name: [str(number)] for number, name in enumerate(self._executed(node))}
            elif definition.name == CHAIN and node.after:
                inputs[node.name] = [edge.node for edge in node.after]
            elif node.call is not None and node.name not in (HEARD, TICKED):
                inputs[node.name] = []
            if node.call is not None and node.call.compensate:
                inputs[f"{node.name}{COMPENSATION}"] = []
        return inputs

    def _executed(self, node: Node) -> list[str]:
        """Return the names of a node's tasks: the node's own name, or the names of a map's elements."""
        if not isinstance(node.work, Each):
            return [node.name]
        return [f"{node.name}[{number}]" for number in range(node.work.limit)]
