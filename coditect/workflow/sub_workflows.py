"""The checks of a definition's sub-workflows: the workflows that its nodes run as children, by their names.

A child is begun in one transaction, so it has fewer nodes than a workflow may have. A workflow may run itself, by its
own name, and so may its children: how deep and how often is bounded when they run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace

from coditect.errors import InvalidWorkflow, Problem
from coditect.model.capability import nearest_names
from coditect.workflow.definition import Definition, Node, SubWorkflow
from coditect.workflow.graph import graph_of
from coditect.workflow.template import Path

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
        problems += [replace(one, path=("workflows", child.name, *one.path)) for one in found]
    return tuple(problems)


def _run_by(node: Node) -> str | None:
    return node.work.workflow if isinstance(node.work, SubWorkflow) else None


def _unknown(definition: Definition, names: Collection[str]) -> Iterator[Problem]:
    for node in definition.nodes:
        name = _run_by(node)
        if name is not None and name not in names:
            near = nearest_names(name, names)
            fix = f"did you mean {' or '.join(near)}?" if near else f"define {name} under `workflows`"
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
