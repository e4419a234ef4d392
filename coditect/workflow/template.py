"""Templates of node inputs: plain JSON in which an object `{"$from": expression}` stands for a computed value.

`{"$literal": value}` is that value unchanged, for an input that itself has a `$from`. Expressions can read:

===============  =====================================================================================
name             what
===============  =====================================================================================
``input``        the workflow's own input
``results``      the values of this node's direct predecessors, by their names
``states``       how they ended: `completed`, `failed`, `skipped`, ...
``item``         in a map: the element
``index``        in a map: its place in the list, from 0
===============  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from coditect.errors import InputError
from coditect.workflow.definition import Approval, Each, Node, WaitUntil

FROM = "$from"
LITERAL = "$literal"
MAX_TEMPLATE_LEVELS = 100
"""How many levels deep a node's input may be nested."""

Path: TypeAlias = tuple[str | int, ...]
"""The place of a value in a document: `("nodes", "build", "after", 0)`."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A part of an input that is passed on unchanged, without a search for `$from` inside."""

    value: Any


def fill(template: Any, find: Callable[[str], Any]) -> Any:
    """Return a copy of a template with each expression replaced by the result of `find`, and each literal unwrapped."""
    match template:
        case {"$from": expression}:
            return find(expression)
        case {"$literal": value}:
            return value
        case dict():
            return {key: fill(part, find) for key, part in template.items()}
        case list():
            return [fill(part, find) for part in template]
        case _:
            return template


def check_template(template: Any) -> None:
    """Check the form of a template's `$from` and `$literal` objects, and that it is at most 100 levels deep.

    Raises:
        InputError: where it is too deep, or `$from` or `$literal` is not alone in its object, or holds no expression.
    """
    for _ in template_expressions(template):
        pass


def template_expressions(template: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Yield the expressions in a template, each with its path in the template.

    Raises:
        InputError: where `$from` or `$literal` is not alone in its object, or holds no expression.
    """
    if len(path) > MAX_TEMPLATE_LEVELS:
        raise InputError("An input is nested too deep", most_levels=MAX_TEMPLATE_LEVELS)
    if isinstance(template, list):
        for number, part in enumerate(template):
            yield from template_expressions(part, (*path, number))
    elif isinstance(template, dict):
        if FROM in template or LITERAL in template:
            yield from _marked(template, path)
            return
        for key, part in template.items():
            yield from template_expressions(part, (*path, key))


def _marked(template: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, str]]:
    if len(template) > 1:
        raise InputError("$from and $literal stand alone in their object", at=path, given=sorted(template)[:5])
    if FROM in template:
        if not isinstance(template[FROM], str):
            raise InputError("$from takes an expression as text", at=path, given=type(template[FROM]).__name__)
        yield (*path, FROM), template[FROM]


def node_expressions(node: Node) -> Iterator[tuple[Path, str]]:
    """Yield each expression of a node with its path in the node, except the condition that ends a loop.

    They are in the input, the condition, a map's list, an approval's artifacts, and the instant of a wait.
    """
    if node.when is not None:
        yield ("when",), node.when
    if isinstance(node.work, Each):
        over = node.work.over
        yield from [(("over",), over)] if isinstance(over, str) else template_expressions(over, ("over",))
    if isinstance(node.work, Approval):
        yield from ((("artifacts", name), text) for name, text in node.work.artifacts.items())
    if isinstance(node.work, WaitUntil):
        yield from template_expressions(node.work.instant, ("wait_until",))
    yield from template_expressions(node.input, ("input",))
