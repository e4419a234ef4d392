"""The graph of a definition: predecessors and dependents, a topological order, and the checks for a valid graph.

Everything here takes time in proportion to nodes and edges: a workflow may have 100,000 nodes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from coditect.errors import InvalidWorkflow, Problem
from coditect.model.capability import nearest_names
from coditect.workflow.definition import (
    MAX_WORKFLOW_NODES,
    MOST_CANCELED,
    MOST_PREDECESSORS,
    Definition,
    Node,
    Rest,
    SubWorkflow,
)
from coditect.workflow.template import Path


@dataclass(frozen=True)
class Graph:
    """A checked definition with indexes of its nodes, order and dependents; made by `graph_of`."""

    nodes: Mapping[str, Node]
    """The nodes by name, in the order of the definition."""
    order: tuple[str, ...]
    """A topological order: every node after its predecessors, otherwise in the order of the definition."""
    dependents: Mapping[str, tuple[str, ...]]
    """The direct dependents of each node."""

    @cached_property
    def layers(self) -> tuple[tuple[str, ...], ...]:
        """The node names grouped by the longest path from a root."""
        depth: dict[str, int] = {}
        layers: list[list[str]] = []
        for name in self.order:
            depth[name] = max((depth[edge.node] + 1 for edge in self.nodes[name].after), default=0)
            if depth[name] == len(layers):
                layers.append([])
            layers[depth[name]].append(name)
        return tuple(tuple(layer) for layer in layers)


def graph_of(definition: Definition, *, capabilities: Collection[str] | None = None) -> Graph:
    """Check that a definition's nodes form a valid graph, and return the graph.

    With `capabilities`, any other capability is a problem.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    problems = _shape(definition) + _edges(definition)
    if capabilities is not None:
        problems += _unknown_capabilities(definition, frozenset(capabilities))
    if not problems:
        nodes = {node.name: node for node in definition.nodes}
        dependents = _dependents(nodes)
        order = _order(nodes, dependents)
        if len(order) == len(nodes):
            return Graph(nodes, order, dependents)
        problems = [_cycle(nodes, frozenset(nodes) - frozenset(order))]
    raise InvalidWorkflow.of(tuple(problems), workflow=definition.name)


def _shape(definition: Definition) -> list[Problem]:
    problems: list[Problem] = []
    if not definition.nodes:
        problems.append(Problem(("nodes",), "A workflow has at least one node", "add a node"))
    if len(definition.nodes) > MAX_WORKFLOW_NODES:
        sentence = f"A workflow has at most {MAX_WORKFLOW_NODES} nodes, this one has {len(definition.nodes)}"
        problems.append(Problem(("nodes",), sentence, "split it into several workflows"))
    counts = Counter(node.name for node in definition.nodes)
    problems += [
        Problem(("nodes", name), f"{count} nodes have the name {name!r}", "give each node a name of its own")
        for name, count in counts.items()
        if count > 1
    ]
    return problems


def _edges(definition: Definition) -> list[Problem]:
    names = frozenset(node.name for node in definition.nodes)
    return [problem for node in definition.nodes for problem in edge_problems(node, names)]


def edge_problems(node: Node, names: Collection[str] | None = None) -> Iterator[Problem]:
    """Yield the problems of a node's `after`, `join`, `rest`, `least`; with `names`, also predecessors not in them."""
    if len(node.after) > MOST_PREDECESSORS:
        sentence = f"A node comes after at most {MOST_PREDECESSORS:,} others, {node.name!r} after {len(node.after):,}"
        yield Problem(("nodes", node.name, "after"), sentence, "gather them in several nodes, or use a map")
    seen: set[str] = set()
    for number, edge in enumerate(node.after):
        path = ("nodes", node.name, "after", number)
        if edge.node == node.name:
            yield Problem(path, f"{node.name!r} comes after itself", "remove it from its own `after`")
        elif names is not None and edge.node not in names:
            yield Problem(path, f"There is no node {edge.node!r}", _nearest(edge.node, names, "name a node"))
        elif edge.node in seen:
            yield Problem(path, f"{edge.node!r} stands twice in `after`", "name it once")
        seen.add(edge.node)
    if isinstance(node.join, int) and not 1 <= node.join <= len(node.after):
        sentence = f"`join` wants {node.join} of {len(node.after)} predecessors"
        yield Problem(("nodes", node.name, "join"), sentence, f"between 1 and {len(node.after)}, or all, or any")
    yield from _rest_problems(node)


def _rest_problems(node: Node) -> Iterator[Problem]:
    """Yield the problems of a node's `rest` (the fate of unended predecessors) and `least` (how many suffice)."""
    if node.rest is Rest.CANCEL and len(node.after) > MOST_CANCELED:
        sentence = f"{node.name!r} cancels the rest of {len(node.after):,} predecessors"
        fix = f"name at most {MOST_CANCELED} predecessors, or leave `rest` out"
        yield Problem(("nodes", node.name, "rest"), sentence, fix)
    if node.least is not None and node.least > node.needed:
        sentence = f"`least` is {node.least}, and `join` needs {node.needed}"
        yield Problem(("nodes", node.name, "least"), sentence, "set it to at most what `join` needs")


def _unknown_capabilities(definition: Definition, known: frozenset[str]) -> list[Problem]:
    return [
        Problem(
            ("nodes", node.name, field),
            f"No agent offers the capability {capability!r}",
            _nearest(capability, known, "start an agent that has it"),
        )
        for node in definition.nodes
        for field, capability in named_capabilities(node)
        if capability not in known
    ]


def named_capabilities(node: Node) -> Iterator[tuple[str, str]]:
    """Yield the capabilities that a node names, each with the field that names it."""
    if node.call is not None:
        yield "task" if node.work is node.call else "map", node.call.capability
    if node.compensate is not None:
        yield "compensate", node.compensate


def _nearest(name: str, known: Collection[str], otherwise: str) -> str:
    nearest = nearest_names(name, known) if len(known) <= 1_000 else ()  # a search through all of them takes long
    return f"did you mean {' or '.join(nearest)}?" if nearest else otherwise


def _dependents(nodes: Mapping[str, Node]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {name: [] for name in nodes}
    for node in nodes.values():
        for edge in node.after:
            found[edge.node].append(node.name)
    return {name: tuple(after) for name, after in found.items()}


def _order(nodes: Mapping[str, Node], dependents: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return a topological order by Kahn's algorithm, without the nodes in a cycle or behind one."""
    missing = {name: len(node.after) for name, node in nodes.items()}
    free = deque(name for name, count in missing.items() if not count)
    order: list[str] = []
    while free:
        order.append(name := free.popleft())
        for dependent in dependents[name]:
            missing[dependent] -= 1
            if not missing[dependent]:
                free.append(dependent)
    return tuple(order)


def _cycle(nodes: Mapping[str, Node], left: frozenset[str]) -> Problem:
    """Return, as a problem with path and fix, one cycle of nodes; `left` has the nodes that no order could place.

    Every node left has a predecessor that is left, so going back from any of them ends in a cycle.
    """
    place: dict[str, int] = {}
    name = next(node for node in nodes if node in left)
    while name not in place:
        place[name] = len(place)
        name = next(edge.node for edge in nodes[name].after if edge.node in left)
    circle = [*list(place)[place[name] :], name][::-1]
    shown = " → ".join(circle if len(circle) <= 20 else [*circle[:10], "…", *circle[-9:]])
    first = nodes[circle[1]]
    number = next(number for number, edge in enumerate(first.after) if edge.node == circle[0])
    path = ("nodes", first.name, "after", number)
    return Problem(path, f"The nodes come after each other in a circle: {shown}", "take one of these edges out")


# The checks of a definition's sub-workflows: the workflows that its nodes run as children, by their names.
#
# A child is begun in one transaction, so it has fewer nodes than a workflow may have. A workflow may run itself, by its
# own name, and so may its children: how deep and how often is bounded when they run.

MOST_CHILD_NODES = 1_000
"""The largest number of nodes of a workflow that runs as a child."""
MOST_DEPTH = 10
"""How deep children may run below the workflow that was started."""
MOST_CHILDREN = 1_000
"""The largest number of children that a started workflow may run in all, children of its children included."""


def children_of(definition: Definition) -> tuple[Definition, ...]:
    """Return every definition that may run as a child: the definition's workflows, and itself where a node runs it."""
    runs_itself = any(_run_by(node) == definition.name for node in every_node(definition))
    own = (replace(definition, workflows=()),) if runs_itself else ()
    return (*definition.workflows, *own)


def every_node(definition: Definition) -> Iterator[Node]:
    """Yield the nodes of a definition and of all its sub-workflows."""
    yield from definition.nodes
    for child in definition.workflows:
        yield from child.nodes


def check_definition(
    definition: Definition, *, capabilities: Collection[str] | None = None, others: Iterable[Problem] = ()
) -> Graph:
    """Check a definition with its sub-workflows as `graph_of` and `child_problems` do, and return its graph.

    `others` are problems already found, as in expressions, which the error names, too.

    Raises:
        InvalidWorkflow: with every problem that was found.
    """
    beside = (*child_problems(definition, capabilities=capabilities), *others)
    try:
        graph = graph_of(definition, capabilities=capabilities)
    except InvalidWorkflow as error:
        raise InvalidWorkflow.of((*error.problems, *beside), workflow=definition.name) from None
    if beside:
        raise InvalidWorkflow.of(beside, workflow=definition.name)
    return graph


def child_problems(definition: Definition, *, capabilities: Collection[str] | None = None) -> tuple[Problem, ...]:
    """Return the problems of a definition's sub-workflows and of the nodes that run them, except in expressions.

    With `capabilities`, any other capability in a sub-workflow is a problem.
    """
    names = {definition.name, *(child.name for child in definition.workflows)}
    problems = [*_unknown(definition, names), *_twice(definition)]
    for child in children_of(definition):
        path: Path = () if child.name == definition.name else ("workflows", child.name)
        if len(child.nodes) > MOST_CHILD_NODES:
            sentence = f"A sub-workflow has at most {MOST_CHILD_NODES:,} nodes, this one has {len(child.nodes):,}"
            problems.append(Problem((*path, "nodes"), sentence, "use a map, or several sub-workflows"))
    for child in definition.workflows:
        found = [*_in_graph(child, capabilities), *_unknown(child, names)]
        problems += [replace(problem, path=("workflows", child.name, *problem.path)) for problem in found]
    return tuple(problems)


def _run_by(node: Node) -> str | None:
    return node.work.workflow if isinstance(node.work, SubWorkflow) else None


def _unknown(definition: Definition, names: Collection[str]) -> Iterator[Problem]:
    for node in definition.nodes:
        name = _run_by(node)
        if name is not None and name not in names:
            fix = _nearest(name, names, f"define {name} under `workflows`")
            yield Problem(("nodes", node.name, "workflow"), f"There is no workflow {name!r} here", fix)


def _twice(definition: Definition) -> Iterator[Problem]:
    counts = Counter((definition.name, *(child.name for child in definition.workflows)))
    for name, count in counts.items():
        if count > 1:
            yield Problem(("workflows", name), f"{count} workflows have the name {name!r}", "give each its own")


def _in_graph(child: Definition, capabilities: Collection[str] | None) -> tuple[Problem, ...]:
    try:
        graph_of(child, capabilities=capabilities)
    except InvalidWorkflow as error:
        return error.problems
    return ()
