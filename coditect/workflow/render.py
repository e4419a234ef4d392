"""Drawings of a workflow: as text, layer by layer, and as a Mermaid flowchart, optionally with the states of a run.

A map's elements, such as `review[3]`, are not nodes of the graph: elements with known states are counted at their map.

Names and questions are untrusted: control characters are replaced, and Mermaid's own signs written as entities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import assert_never

from coditect.model.duration import duration_text
from coditect.workflow.definition import (
    COMPENSATION,
    After,
    Approval,
    AwaitSignal,
    Call,
    Definition,
    Each,
    Node,
    OnFailure,
    SubWorkflow,
    WaitFor,
    WaitUntil,
    Work,
    defined_name,
)
from coditect.workflow.graph import Graph, graph_of
from coditect.workflow.states import TaskState
from coditect.workflow.template import FROM

MOST_LABEL_CHARACTERS = 60
_COLOURS = {
    TaskState.READY: "#fff3bf",
    TaskState.PUBLISHED: "#d0ebff",
    TaskState.WORKING: "#a5d8ff",
    TaskState.RETRY_WAIT: "#ffe8cc",
    TaskState.AWAITING_APPROVAL: "#e5dbff",
    TaskState.WAITING: "#f3f0ff",
    TaskState.COMPLETED: "#d3f9d8",
    TaskState.FAILED: "#ffc9c9",
    TaskState.CANCELED: "#dee2e6",
    TaskState.REJECTED: "#fcc2d7",
    TaskState.SKIPPED: "#f1f3f5",
    TaskState.DEAD: "#ffa8a8",
}

States = Mapping[str, TaskState]


def draw_text(definition: Definition, states: States | None = None) -> str:
    """Draw a workflow as text: a title, then a line for each node, by layers: state if given, work and predecessors.

    Raises:
        InvalidWorkflow: when the nodes do not form a valid graph.
    """
    graph = graph_of(definition)
    elements = _elements(states or {})
    rows = [
        (str(number), _mark(name, states), name, _what(graph.nodes[name], elements), _after_text(graph.nodes[name]))
        for number, layer in enumerate(graph.layers, 1)
        for name in layer
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    title = f"{definition.name}: {_counted(len(rows), 'node')} in {_counted(len(graph.layers), 'layer')}"
    lines = [title, *(_aligned(row, widths) for row in rows)]
    return "\n".join(lines) + "\n"


def draw_mermaid(definition: Definition, states: States | None = None) -> str:
    """Draw a workflow as a Mermaid flowchart, with nodes colored by their states, if any are given.

    Raises:
        InvalidWorkflow: when the nodes do not form a valid graph.
    """
    graph = graph_of(definition)
    ids = {name: f"n{number}" for number, name in enumerate(graph.order)}
    lines = ["flowchart TD"]
    elements = _elements(states or {})
    lines += [f"    {ids[name]}{_shape(graph.nodes[name], elements)}" for name in graph.order]
    lines += [f"    {line}" for line in _edges(graph, ids)]
    if states:
        lines += [f"    {line}" for line in _classes(states, ids)]
    return "\n".join(lines) + "\n"


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False) if width]
    return "  ".join([*cells, row[-1]]).rstrip()


def _mark(name: str, states: States | None) -> str:
    return states[name].value if states and name in states else ""


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _work_text(work: Work) -> str:
    match work:
        case Call(capability=capability):
            return f"task {capability}"
        case Each(call=call, limit=limit):
            return f"map {call.capability}, at most {limit}"
        case Approval(question=question, timeout_ms=waits, on_timeout=then, artifacts=required):
            bound = "" if waits is None else f", {then} after {duration_text(waits)}"
            needs = f", needs {', '.join(required)}" if required else ""
            return f"approval “{_label(question)}”{bound}{needs}"
        case SubWorkflow(workflow=name):
            return f"workflow {name}"
        case WaitFor() | WaitUntil() | AwaitSignal():
            return _wait_text(work)
        case _:
            assert_never(work)


def _wait_text(work: WaitFor | WaitUntil | AwaitSignal) -> str:
    match work:
        case WaitFor(period_ms=period):
            return f"wait {duration_text(period)}"
        case WaitUntil(instant=instant):
            return f"wait until {_label(instant if isinstance(instant, str) else instant[FROM])}"
        case AwaitSignal(signal=signal, timeout_ms=waits):
            return f"signal {signal}" + ("" if waits is None else f", fail after {duration_text(waits)}")


def _after_text(node: Node) -> str:
    shown = [_edge_text(edge) for edge in node.after[:8]]
    if len(node.after) > 8:
        shown.append(f"… ({len(node.after)} in all)")
    parts = [f"after {_join_text(node)}{', '.join(shown)}"] if shown else []
    return "; ".join([*parts, *_when_text(node)])


def _when_text(node: Node) -> list[str]:
    return [] if node.when is None else [f"when {_label(node.when)}"]


def _edge_text(edge: After) -> str:
    return edge.node if edge.on_failure is OnFailure.FAIL else f"{edge.node} ({edge.on_failure} on failure)"


def _join_text(node: Node) -> str:
    if node.join == "all":
        return ""
    return "any of " if node.join == "any" else f"{node.join} of "


def _elements(states: States) -> dict[str, str]:
    """Return, by node, a text that counts the states of its map elements and of its compensations."""
    elements: dict[str, Counter[TaskState]] = {}
    compensations: dict[str, Counter[TaskState]] = {}
    for name, state in states.items():
        base = defined_name(name)
        if name != base:
            counts = compensations if name.endswith(COMPENSATION) else elements
            counts.setdefault(base, Counter())[state] += 1
    texts = {name: _counts(count) for name, count in elements.items()}
    for name, count in compensations.items():
        text = f"compensation {_counts(count) if count.total() > 1 else next(iter(count))}"
        texts[name] = f"{texts[name]}; {text}" if name in texts else text
    return texts


def _counts(count: Counter[TaskState]) -> str:
    others = [f"{count[state]} {state}" for state in TaskState if count[state] and state is not TaskState.COMPLETED]
    return ", ".join([f"{count[TaskState.COMPLETED]}/{count.total()} completed", *others])


def _what(node: Node, elements: Mapping[str, str]) -> str:
    work = _work_text(node.work)
    return f"{work}: {elements[node.name]}" if node.name in elements else work


def _shape(node: Node, elements: Mapping[str, str]) -> str:
    """Return a node's Mermaid shape, with lines for name, work, element counts, join and condition."""
    join = f"{_join_text(node)}{len(node.after)}" if node.join != "all" else ""
    lines = [node.name, _work_text(node.work), elements.get(node.name, ""), join, *_when_text(node)]
    label = f'"{"<br/>".join(_entities(line) for line in lines if line)}"'
    match node.work:
        case Call():
            return f"[{label}]"
        case Each():
            return f"[[{label}]]"
        case Approval():
            return f"{{{{{label}}}}}"
        case WaitFor() | WaitUntil() | AwaitSignal():
            return f"([{label}])"
        case SubWorkflow():
            return f"[/{label}/]"
        case _:
            assert_never(node.work)


def _edges(graph: Graph, ids: Mapping[str, str]) -> Iterator[str]:
    for name in graph.order:
        for edge in graph.nodes[name].after:
            arrow = "-->" if edge.on_failure is OnFailure.FAIL else f"-. {edge.on_failure} .->"
            yield f"{ids[edge.node]} {arrow} {ids[name]}"


def _classes(states: States, ids: Mapping[str, str]) -> Iterator[str]:
    for state, colour in _COLOURS.items():
        members = [ids[name] for name, node_state in states.items() if node_state is state and name in ids]
        if members:
            yield f"classDef {state} fill:{colour}"
            yield f"class {','.join(members)} {state}"


def _label(text: str) -> str:
    clean = "".join(char if char.isprintable() else " " for char in text)
    return clean if len(clean) <= MOST_LABEL_CHARACTERS else clean[: MOST_LABEL_CHARACTERS - 1] + "…"


def _entities(text: str) -> str:
    """Escape the signs that end or change a Mermaid label; `#` comes first, since it begins an entity."""
    for sign, entity in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("`", "#96;"), ("&", "#amp;")):
        text = text.replace(sign, entity)
    return text
