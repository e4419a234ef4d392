"""Patterns: workflow documents with placeholders and parameters, their catalogue, and their rendering to workflows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)

from coditect.errors import InputError, NotFound
from coditect.workflow import fields
from coditect.workflow.definition import Definition
from coditect.workflow.documents.file import parse_document, read_file
from coditect.workflow.documents.reader import from_document
from coditect.workflow.expressions import check_expressions, parse
from coditect.workflow.graph import check_definition
from coditect.workflow.template import MAX_TEMPLATE_LEVELS

MOST_REPEATED = 100
"""The largest number of nodes that one node of a pattern may become."""
MAX_PATTERN_PROBLEMS = 10
"""The largest number of problems that one error tells."""


class ParameterType(StrEnum):
    """The type of a pattern's parameter, which decides which values it takes and where they may be inserted."""

    CAPABILITY = "capability"
    CAPABILITIES = "capabilities"
    COUNT = "count"
    """A whole number from 1 to 100."""
    SHARE = "share"
    """A number from 0 to 1."""
    EXPRESSION = "expression"
    STEPS = "steps"
    """A list of objects with `do`, a capability, and `undo`, the capability that compensates it."""
    JSON = "json"


class _PatternPart(BaseModel):
    """The base of all objects in the file of a workflow pattern; it refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _expression(text: str) -> str:
    parse(text)
    return text


_Capability = Annotated[str, BeforeValidator(fields.for_pydantic(fields.capability))]
_Word = Annotated[str, Field(max_length=60, pattern=r"^[a-z][a-z0-9_]*$")]


class _Step(_PatternPart):
    """A step of a saga: the capability that does it, and the capability that undoes it."""

    do: _Capability
    undo: _Capability


_READERS: Mapping[ParameterType, TypeAdapter[Any]] = {
    ParameterType.CAPABILITY: TypeAdapter(_Capability),
    ParameterType.CAPABILITIES: TypeAdapter(
        Annotated[list[_Capability], Field(min_length=1, max_length=MOST_REPEATED)]
    ),
    ParameterType.COUNT: TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=MOST_REPEATED)]),
    ParameterType.SHARE: TypeAdapter(Annotated[float, Field(strict=True, ge=0, le=1)]),
    ParameterType.EXPRESSION: TypeAdapter(
        Annotated[str, Field(min_length=1, max_length=500), AfterValidator(fields.for_pydantic(_expression))]
    ),
    ParameterType.STEPS: TypeAdapter(Annotated[list[_Step], Field(min_length=1, max_length=MOST_REPEATED)]),
    ParameterType.JSON: TypeAdapter(JsonValue),
}


class PatternParameter(_PatternPart):
    """A parameter of a pattern: its type, what it is for, and its default; without a default it must be given."""

    type: ParameterType
    description: str = Field("", max_length=500)
    default: JsonValue = None

    @property
    def required(self) -> bool:
        """Tell whether the parameter has no default."""
        return "default" not in self.model_fields_set

    def read(self, value: object) -> Any:
        """Check a value against the parameter's type, and return it as plain JSON.

        Raises:
            ValidationError: when the value is not of the parameter's type.
        """
        reader = _READERS[self.type]
        return reader.dump_python(reader.validate_python(value), mode="json")


class WorkflowPattern(_PatternPart):
    """A named workflow with parameters, as read from its file; `rendering.py` makes an ordinary workflow of it."""

    pattern: _Word
    """The pattern's name."""
    description: str = Field("", max_length=2_000)
    parameters: dict[_Word, PatternParameter] = Field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = Field(min_length=1)
    """The nodes by their names, as in a workflow's file, with gaps."""

    def arguments(self, arguments: Mapping[str, object]) -> dict[str, Any]:
        """Return the value of every parameter: the given value, or else the default; both are checked.

        Raises:
            InputError: with up to ten of the unknown, missing or wrong parameters; not retryable.
        """
        problems = [f"{name}: no such parameter" for name in arguments if name not in self.parameters]
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if name not in arguments and parameter.required:
                problems.append(f"{name}: must be given, {parameter.type}")
                continue
            try:
                values[name] = parameter.read(arguments.get(name, parameter.default))
            except ValidationError as error:
                problems += [f"{name}: {problem}" for problem in problems_of(error)]
        if problems:
            fix = f"write lists and objects as JSON; see `coditect workflow pattern {self.pattern}`"
            raise InputError(
                "These parameters do not fit the pattern",
                pattern=self.pattern,
                problems=problems[:MAX_PATTERN_PROBLEMS],
                fix=fix,
            )
        return values


def problems_of(error: ValidationError) -> list[str]:
    """Return the problems in a validation error as sentences, each with its place in the value; at most ten."""
    return [
        ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, "))))
        for problem in error.errors(include_url=False, include_input=False)[:MAX_PATTERN_PROBLEMS]
    ]


def check_depth(value: object, levels: int = 0) -> None:
    """Check that a pattern's nodes are not nested too deep to be rendered.

    Raises:
        InputError: when they are; not retryable.
    """
    if levels > MAX_TEMPLATE_LEVELS:
        raise InputError("A pattern is nested too deep", most_levels=MAX_TEMPLATE_LEVELS, fix="nest its inputs less")
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in below:
        check_depth(part, levels + 1)


PACKAGED = Path(__file__).parent / "library"
PATTERN_BYTES_LIMIT = 1_000_000

Catalogue = Mapping[str, WorkflowPattern]


def load_patterns(folders: Iterable[Path] = ()) -> Catalogue:
    """Read the packaged patterns and those of `*.yaml` files in folders, by their names, in order of the names.

    Raises:
        NotFound: when a folder or a file cannot be read.
        InputError: when a file is no pattern, or two files have one name; not retryable.
        InvalidWorkflow: when a file is no YAML, with its line.
    """
    found: dict[str, WorkflowPattern] = {}
    for folder in (PACKAGED, *folders):
        for path in _files(folder):
            pattern = read_pattern(read_file(path, most_bytes=PATTERN_BYTES_LIMIT), name=str(path))
            if pattern.pattern in found:
                fix = "give each pattern a name of its own"
                raise InputError("Two patterns have one name", given=pattern.pattern, path=str(path), fix=fix)
            found[pattern.pattern] = pattern
    return dict(sorted(found.items()))


def find_pattern(patterns: Catalogue, name: str) -> WorkflowPattern:
    """Return the pattern of a name from a catalogue; for an unknown name, raise NotFound with the known names.

    Raises:
        NotFound: when no pattern has the name; tells the names there are.
    """
    if name not in patterns:
        fix = "see `coditect workflow pattern`"
        raise NotFound("There is no such pattern", given=name, known=list(patterns), fix=fix)
    return patterns[name]


def read_pattern(content: bytes, *, name: str = "") -> WorkflowPattern:
    """Read and check the pattern in the bytes of a YAML document; errors about its size or fields name it by `name`.

    Raises:
        InputError: with the places of up to ten problems; not retryable.
        InvalidWorkflow: when the bytes are no YAML, with the line.
    """
    if len(content) > PATTERN_BYTES_LIMIT:
        raise InputError(
            "A pattern is at most so large", path=name, most_bytes=PATTERN_BYTES_LIMIT, fix="use fewer nodes"
        )
    document = parse_document(content)
    try:
        pattern = WorkflowPattern.model_validate(document)
    except ValidationError as error:
        fix = "correct it; the fields are in docs/workflow-patterns.md"
        raise InputError("This is no pattern", path=name, problems=problems_of(error), fix=fix) from error
    check_depth(pattern.nodes)
    return pattern


def _files(folder: Path) -> list[Path]:
    try:
        if folder.is_dir():
            return sorted(folder.glob("*.yaml"))
        reason = "it is no folder"
    except (OSError, ValueError) as error:  # a name that no file system takes
        reason = str(error)[:200]
    fix = "name a folder of YAML files"
    raise NotFound("There is no such folder of patterns", path=str(folder)[:200], reason=reason, fix=fix)


# The rendering of a pattern with its arguments to an ordinary workflow, which is checked like a person's own.
#
# ======================  ==============================================================================
# in a pattern's node     what it becomes
# ======================  ==============================================================================
# ``{$param: name}``      the value of a parameter
# ``for: name``           one node for each element of the parameter, `vote` becomes `vote_1`, `vote_2`;
#                         of a count, that many nodes
# ``{$each: key}``        in such a node: the element, or its field of this name where a key is given
# ``${name}``             in a text: a count, a share, or an expression in parentheses
# ``${number}``           in such a node: its number, from 1; ``${before}`` is the number before, and in the first
#                         node a ``$from`` with it is null
# ``${vote}``             in a text: the list of the results of all nodes made from `vote`
# ``after: [vote]``       all nodes made from `vote`; a name with the number 0 is left out
# ``when_after: text``    in such a node: its condition, except for the first
# ``pattern: name``       a sub-workflow, rendered from another pattern by the parameters below `with`
# ======================  ==============================================================================
#
# Values of parameters stay data: none is searched for gaps again.

MOST_NESTED = 5
"""How many patterns deep a pattern may use patterns."""
MOST_RENDERED = 1_000
"""The largest number of nodes that a pattern may become, with those of the patterns that it uses."""

_GAP = re.compile(r"\$\{([a-z][a-z0-9_]*)\}")
_IN_TEXT = frozenset({ParameterType.COUNT, ParameterType.SHARE, ParameterType.EXPRESSION})


def render_pattern(patterns: Catalogue, name: str, values: Mapping[str, object], *, as_name: str = "") -> Definition:
    """Render a pattern of the catalogue to a checked workflow; `as_name` is its name, by default the pattern's.

    Raises:
        NotFound: when there is no such pattern.
        InputError: when parameters do not fit, or patterns use each other too deep; not retryable.
        InvalidWorkflow: when what comes out is no valid workflow.
    """
    rendering = _Rendering(patterns)
    nodes = rendering.nodes(find_pattern(patterns, name), values, 0)
    document: dict[str, Any] = {"name": as_name or name, "nodes": nodes, "labels": {"pattern": name}}
    definition = from_document(document | ({"workflows": rendering.children} if rendering.children else {}))
    check_definition(definition, others=check_expressions(definition))
    return definition


def make_workflow(name: str, values: Mapping[str, object], folders: Iterable[Path] = ()) -> Definition:
    """Render a packaged pattern, or one of the folders, as `render_pattern` does."""
    return render_pattern(load_patterns(folders), name, values)


@dataclass(slots=True)
class _Rendering:
    """The rendering of a pattern into nodes, with the sub-workflows and the number of nodes made so far."""

    patterns: Catalogue
    children: dict[str, Any] = field(default_factory=dict)
    made: int = 0

    def nodes(self, pattern: WorkflowPattern, values: Mapping[str, object], depth: int) -> dict[str, Any]:
        """Return, by name, a pattern's nodes as documents filled with the given values, a repeated one in copies."""
        if depth > MOST_NESTED:
            fix = "let no pattern use itself"
            raise InputError("Patterns use each other too deep", pattern=pattern.pattern, most=MOST_NESTED, fix=fix)
        arguments = pattern.arguments(values)
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
        used, values = node.pop("pattern"), node.pop("with", {})
        if not isinstance(used, str) or not isinstance(values, dict):
            fix = "write `pattern: NAME` and `with: {PARAMETER: VALUE}`"
            raise InputError("This node uses no pattern", given=str(used)[:80], fix=fix)
        child = find_pattern(self.patterns, used)
        nodes = self.nodes(child, values, depth + 1)
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
                return {key: self.fill(part) for key, part in template.items()}
            case list():
                return [self.fill(part) for part in template]
            case _:
                return _GAP.sub(self._text, template) if isinstance(template, str) else template

    def _after(self, edges: list[Any]) -> Iterator[Any]:
        for edge in edges:
            document = dict(edge) if isinstance(edge, dict) else {"node": edge}
            name = self.fill(document["node"])
            copies = self.copies.get(name)
            names = [name] if copies is None else [f"{name}_{number}" for number in range(1, len(copies) + 1)]
            for node_name in names:
                if not node_name.endswith("_0"):
                    yield document | {"node": node_name} if isinstance(edge, dict) else node_name

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
