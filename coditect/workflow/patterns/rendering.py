"""The rendering of a pattern with its arguments to an ordinary workflow, which is checked like a person's own.

======================  ==============================================================================
in a pattern's node     what it becomes
======================  ==============================================================================
``{$param: name}``      the value of a parameter
``for: name``           one node for each element of the parameter, `vote` becomes `vote_1`, `vote_2`;
                        of a count, that many nodes
``{$each: key}``        in such a node: the element, or its field of this name where a key is given
``${name}``             in a text: a count, a share, or an expression in parentheses
``${number}``           in such a node: its number, from 1; ``${before}`` is the number before, and in the first
                        node a ``$from`` with it is null
``${vote}``             in a text: the list of the results of all nodes made from `vote`
``after: [vote]``       all nodes made from `vote`; a name with the number 0 is left out
``when_after: text``    in such a node: its condition, except for the first
``pattern: name``       a sub-workflow, rendered from another pattern by the parameters below `with`
======================  ==============================================================================

Values of parameters stay data: none is searched for gaps again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from coditect.errors import InputError, InvalidWorkflow
from coditect.workflow.definition import Definition
from coditect.workflow.documents.reader import from_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.graph import graph_of
from coditect.workflow.patterns.catalogue import Catalogue, find_pattern
from coditect.workflow.patterns.pattern import ParameterType, WorkflowPattern
from coditect.workflow.sub_workflows import child_problems

MOST_NESTED = 5
"""How many patterns deep a pattern may use patterns."""
MOST_RENDERED = 1_000
"""The largest number of nodes that a pattern may become, with those of the patterns that it uses."""

_GAP = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")
_IN_TEXT = frozenset({ParameterType.COUNT, ParameterType.SHARE, ParameterType.EXPRESSION})


def render_pattern(patterns: Catalogue, name: str, given: Mapping[str, object], *, as_name: str = "") -> Definition:
    """Render a pattern of the catalogue to a checked workflow; `as_name` is its name, by default the pattern's.

    Raises:
        NotFound: when there is no such pattern.
        InputError: when parameters do not fit, or patterns use each other too deep; not retryable.
        InvalidWorkflow: when what comes out is no valid workflow.
    """
    rendering = _Rendering(patterns)
    nodes = rendering.nodes(find_pattern(patterns, name), given, 0)
    document: dict[str, Any] = {"name": as_name or name, "nodes": nodes, "labels": {"pattern": name}}
    definition = from_document(document | ({"workflows": rendering.children} if rendering.children else {}))
    graph_of(definition)
    if problems := (*child_problems(definition), *check_expressions(definition)):
        raise InvalidWorkflow.of(problems, workflow=definition.name)
    return definition


@dataclass(slots=True)
class _Rendering:
    """The rendering of a pattern into nodes, with the sub-workflows and the number of nodes made so far."""

    patterns: Catalogue
    children: dict[str, Any] = field(default_factory=dict)
    made: int = 0

    def nodes(self, pattern: WorkflowPattern, given: Mapping[str, object], depth: int) -> dict[str, Any]:
        """Return, by name, a pattern's nodes as documents filled with the given values, a repeated one in copies."""
        if depth > MOST_NESTED:
            fix = "let no pattern use itself"
            raise InputError("Patterns use each other too deep", pattern=pattern.pattern, most=MOST_NESTED, fix=fix)
        arguments = pattern.arguments(given)
        copies = {name: _elements(pattern, name, node, arguments) for name, node in pattern.nodes.items()}
        nodes: dict[str, Any] = {}
        for name, template in pattern.nodes.items():
            for number, element in enumerate(copies[name] or [None], 1):
                self._count(pattern)
                made = name if copies[name] is None else f"{name}_{number}"
                if made in nodes:
                    fix = "rename one of the pattern's nodes"
                    raise InputError("Two nodes have one name", pattern=pattern.pattern, given=made, fix=fix)
                gaps = _Gaps(pattern, arguments, copies, number, element)
                nodes[made] = self._place(gaps.node(template), depth)
        return nodes

    def _count(self, pattern: WorkflowPattern) -> None:
        self.made += 1
        if self.made > MOST_RENDERED:
            fix = "give shorter lists, or use a map"
            raise InputError("A pattern has too many nodes", pattern=pattern.pattern, most=MOST_RENDERED, fix=fix)

    def _place(self, node: dict[str, Any], depth: int) -> dict[str, Any]:
        """Return a node's document; a node that uses another pattern becomes one that runs a sub-workflow."""
        if "pattern" not in node:
            return node
        used, given = node.pop("pattern"), node.pop("with", {})
        if not isinstance(used, str) or not isinstance(given, dict):
            fix = "write `pattern: NAME` and `with: {PARAMETER: VALUE}`"
            raise InputError("This node uses no pattern", given=str(used)[:80], fix=fix)
        child = find_pattern(self.patterns, used)
        nodes = self.nodes(child, given, depth + 1)
        name = f"{used}.{len(self.children) + 1}"
        self.children[name] = {"description": child.description, "nodes": nodes}
        return {"workflow": name, **node}


def _elements(
    pattern: WorkflowPattern, name: str, node: Mapping[str, Any], arguments: Mapping[str, Any]
) -> list[Any] | None:
    """Return the values for which a node is copied: a parameter's list, or 1 to its count; None without `for`."""
    if "for" not in node:
        return None
    match arguments.get(str(node["for"])):
        case list() as elements if elements:
            return elements
        case int() as count:
            return list(range(1, count + 1))
        case _:
            fix = "`for` names a parameter that is a list or a count"
            raise InputError(
                "A node is repeated for no list", pattern=pattern.pattern, node=name, given=str(node["for"]), fix=fix
            )


@dataclass(frozen=True, slots=True)
class _Gaps:
    """The values of the placeholders (gaps) in one node of a pattern."""

    pattern: WorkflowPattern
    arguments: Mapping[str, Any]
    copies: Mapping[str, list[Any] | None]
    number: int
    element: Any

    def node(self, template: Mapping[str, Any]) -> dict[str, Any]:
        """Return the node's document with its placeholders filled."""
        own = {key: value for key, value in template.items() if key not in ("for", "after", "when_after")}
        node: dict[str, Any] = self.fill(own)
        if after := [*self._after(template.get("after") or [])]:
            node["after"] = after
        if "when_after" in template and self.number > 1:
            node["when"] = self.fill(template["when_after"])
        return node

    def fill(self, template: Any) -> Any:
        """Return a copy of a part of the node with its placeholders filled."""
        match template:
            case {"$param": name, **others} if not others:
                return self._argument(name)
            case {"$each": key, **others} if not others:
                return self.element[key] if isinstance(self.element, dict) and key else self.element
            case {"$from": str(text)} if self.number == 1 and "${before}" in text:
                return None
            case dict():
                return {key: self.fill(one) for key, one in template.items()}
            case list():
                return [self.fill(one) for one in template]
            case _:
                return _GAP.sub(self._text, template) if isinstance(template, str) else template

    def _after(self, edges: list[Any]) -> Iterator[Any]:
        for edge in edges:
            told = dict(edge) if isinstance(edge, dict) else {"node": edge}
            name = self.fill(told["node"])
            copies = self.copies.get(name)
            names = [name] if copies is None else [f"{name}_{number}" for number in range(1, len(copies) + 1)]
            for one in names:
                if not one.endswith("_0"):
                    yield told | {"node": one} if isinstance(edge, dict) else one

    def _argument(self, name: object) -> Any:
        if name not in self.arguments:
            fix = "declare it below `parameters`"
            raise InputError(
                "A pattern has no such parameter", pattern=self.pattern.pattern, given=str(name)[:80], fix=fix
            )
        return self.arguments[str(name)]

    def _text(self, gap: re.Match[str]) -> str:
        name = gap[1]
        if name == "number":
            return str(self.number)
        if name == "before":
            return str(self.number - 1)
        if name in self.copies:
            copies = self.copies[name]
            numbers = [""] if copies is None else [f"_{number}" for number in range(1, len(copies) + 1)]
            return f"[{', '.join(f'results.{name}{number}' for number in numbers)}]"
        value = self._argument(name)
        if self.pattern.parameters[name].type not in _IN_TEXT:
            fix = "write {$param: NAME} in a place of its own"
            raise InputError("This parameter cannot stand in a text", given=name, fix=fix)
        return f"({value})" if isinstance(value, str) else str(value)
