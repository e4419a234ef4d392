"""Expressions in workflows: JMESPath over what a node may see, at a bounded cost.

An expression is text of a stranger. It can read the scope that it is given and nothing else; there are JMESPath's own
functions and no others; and it is refused when it is long, deep, or takes too many steps. A step is one value that is
copied, compared or handed to a function, and one part of the expression evaluated once counts as 8 of them, since it
takes so much longer. JMESPath can double a value with a few characters, so results are weighed as they are made.

====================  =========================================
length                1,000 characters
depth                 64 levels
steps                 2,000,000 for all expressions of one node,
                      for all elements of a map
====================  =========================================

What the scope holds is told in `workflow/template.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from coditect.errors import InputError, InvalidWorkflow, Problem, missing_extra
from coditect.workflow import fields
from coditect.workflow.definition import Definition, Each, Node
from coditect.workflow.template import FROM, Path, fill, node_expressions

try:
    import jmespath
    from jmespath.functions import Functions
    from jmespath.visitor import Options, TreeInterpreter
except ModuleNotFoundError as _missing:
    raise missing_extra("workflow") from _missing

MOST_DEPTH = 64
MOST_STEPS = 2_000_000
"""A quarter of a second's work, and a second's on a machine that is four times slower."""
STEPS_PER_VISIT = 8
"""What the evaluation of one part counts: a microsecond, where a weighed value takes an eighth of one."""

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`((?:[^`\\]|\\.)*)`", re.DOTALL)
CHARACTERS_PER_STEP = 64
_FUNCTIONS = frozenset(Functions.FUNCTION_TABLE)
_REFUSALS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""What JMESPath raises for an expression or a value that does not fit: its own errors are ValueErrors."""
_ROOTS = frozenset({"input", "results", "states"})
_ROOTS_OF_AN_ELEMENT = _ROOTS | {"item", "index"}
_MOVING = frozenset(
    {"subexpression", "index_expression", "pipe", "projection", "value_projection", "filter_projection"}
)
"""The parts whose first child looks at the scope and whose others look at what that one found."""

Tree = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scope:
    """What the expressions of one node can see."""

    input: Any
    """The workflow's own."""
    results: Mapping[str, Any]
    """Values of the direct predecessors; null for those that have none."""
    states: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """As JMESPath sees it."""
        return {"input": self.input, "results": dict(self.results), "states": dict(self.states)}


class Account:
    """The steps of one node: whoever evaluates several of its expressions gives the same account to each.

    With a lower bound than `MOST_STEPS` one that is `overdrawn` says nothing of the expressions but that they take more
    than that.
    """

    def __init__(self, most_steps: int = MOST_STEPS) -> None:
        self.spent = 0
        self._most_steps = most_steps

    @property
    def overdrawn(self) -> bool:
        """Whether more was asked of it than it holds."""
        return self.spent > self._most_steps

    def charge(self, steps: int) -> None:
        """Raises: InputError when there are no more."""
        self.spent += steps
        if self.spent > self._most_steps:
            raise InputError("It takes too many steps", most_steps=self._most_steps)

    def weigh(self, value: Any) -> None:
        """Charges for every value within, however often it is shared."""
        to_weigh = [value]
        while to_weigh:
            one = to_weigh.pop()
            self.charge(1)
            if isinstance(one, str):
                self.charge(len(one) // CHARACTERS_PER_STEP)
            elif isinstance(one, list):
                self.charge(len(one))
                to_weigh += one
            elif isinstance(one, dict):
                self.charge(len(one))
                to_weigh += one.values()


def condition_holds(node: Node, scope: Scope, account: Account | None = None) -> bool:
    """Whether the node's `when` finds something: not null, false, or an empty text, list or object. 0 is something.

    Raises: InvalidWorkflow, naming node and expression; not retryable, the same values give the same.
    """
    if node.when is None:
        return True
    found = _Evaluation(node, scope.document(), account or Account()).find(node.when)
    return not (found is None or found is False or found in ("", [], {}))


def node_input(node: Node, scope: Scope, account: Account | None = None) -> Any:
    """The input of the node's task. Raises: as `condition_holds`."""
    return _input(node, scope.document(), account or Account())


def element_inputs(node: Node, scope: Scope, account: Account | None = None) -> Iterator[Any]:
    """The inputs of a map's tasks, one for each element. Raises: as `condition_holds`; when there is no list, or a
    longer one than the node's limit, before the first.
    """
    assert isinstance(node.work, Each)
    account = account or Account()
    elements = _Evaluation(node, scope.document(), account).find(node.work.over)
    if not isinstance(elements, list):
        fix = "`over` has to find a list"
        raise _failure(node, node.work.over, f"a list is expected, not {type(elements).__name__}", fix)
    if len(elements) > node.work.limit:
        reason = f"{len(elements)} elements are more than the limit of {node.work.limit}"
        raise _failure(node, node.work.over, reason, "raise `limit`, or find fewer")
    document = scope.document()
    return (_input(node, document | {"item": item, "index": index}, account) for index, item in enumerate(elements))


def check_expressions(definition: Definition) -> tuple[Problem, ...]:
    """What is wrong with a definition's expressions: syntax, functions, and names that the node cannot see."""
    return tuple(
        Problem(("nodes", node.name, *path), sentence, fix)
        for node in definition.nodes
        for path, text in node_expressions(node)
        for sentence, fix in _complaints(node, path, text)
    )


@lru_cache(maxsize=4096)
def parse(text: str) -> Tree:
    """The expression's tree. Raises: InputError with the reason when it is none, too long, too deep."""
    fields.expression(text)
    _refuse_old_literals(text)
    try:
        tree: Tree = jmespath.compile(text).parsed
        deep = _depth(tree) > MOST_DEPTH
    except RecursionError:
        deep = True
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError("This is no JMESPath expression", expression=text, reason=reason) from error
    if deep:
        raise InputError("The expression is nested too deep", most_levels=MOST_DEPTH)
    return tree


def _refuse_old_literals(text: str) -> None:
    """Between backquotes is JSON; the library would still take anything else there for text, with a warning."""
    for found in _QUOTED.finditer(text):
        if found[1] is not None:
            try:
                json.loads(found[1].replace("\\`", "`"))
            except (ValueError, RecursionError) as error:
                reason = "between backquotes is JSON; text is in single quotes"
                raise InputError("This is no JMESPath expression", expression=text, reason=reason) from error


class _Evaluation:
    """The expressions of one node over one document."""

    def __init__(self, node: Node, document: Mapping[str, Any], account: Account) -> None:
        self._node = node
        self._document = document
        self._interpreter = _CountingInterpreter(account)

    def find(self, text: str) -> Any:
        """What the expression finds; null where there is nothing."""
        try:
            return self._interpreter.weighed(self._interpreter.visit(parse(text), self._document))
        except InputError as error:
            raise _failure(self._node, text, _reason(error), "correct the expression") from error
        except _REFUSALS as error:
            raise _failure(self._node, text, str(error), "the values are not what it is written for") from error


def _input(node: Node, document: Mapping[str, Any], account: Account) -> Any:
    call = node.call
    if call is None or call.input is None:
        return {}
    return fill(call.input, lambda text: _Evaluation(node, document, account).find(text))


def _failure(node: Node, text: str, reason: str, fix: str) -> InvalidWorkflow:
    told = " ".join(reason.split())[:200]
    return InvalidWorkflow(
        "An expression could not be evaluated", node=node.name, expression=text, reason=told, fix=fix
    )


def _reason(error: InputError) -> str:
    return str(error.facts.get("reason", error.sentence))


class _CountingInterpreter(TreeInterpreter):
    """JMESPath's interpreter, charging for what it does."""

    def __init__(self, account: Account) -> None:
        super().__init__(Options(custom_functions=_CountingFunctions(account)))
        self._account = account

    def weighed(self, value: Any) -> Any:
        self._account.weigh(value)
        return value

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        self._account.charge(STEPS_PER_VISIT)
        result = super().visit(node, *args, **kwargs)
        match node["type"]:
            case "multi_select_list" | "multi_select_dict":
                self._account.weigh(result)
            case "flatten" | "slice" if result is not None:
                self._account.charge(len(result))
        return result

    def visit_comparator(self, node: Any, value: Any) -> Any:
        sides = [self.weighed(self.visit(side, value)) for side in node["children"]]
        found: Any = [{"type": "literal", "value": side, "children": []} for side in sides]
        replaced: Any = {**node, "children": found}
        return super().visit_comparator(replaced, value)


class _CountingFunctions(Functions):
    """JMESPath's functions, charging for what they are given. None is added."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def call_function(self, function_name: str, resolved_args: Iterable[Any]) -> Any:
        for argument in (arguments := list(resolved_args)):
            self._account.weigh(argument)
        match function_name, arguments:
            case "join", [str(glue), list(pieces)]:
                self._account.charge(len(glue) * len(pieces) // CHARACTERS_PER_STEP)
        return super().call_function(function_name, arguments)


def _depth(tree: Any) -> int:
    """Of the tree, by its longest way down; iterative, since it is what bounds the recursion of the others."""
    deepest, to_see = 0, [(tree, 1)]
    while to_see:
        node, depth = to_see.pop()
        deepest = max(deepest, depth)
        to_see += [(child, depth + 1) for child in _children(node)]
    return deepest


def _children(tree: Tree) -> list[Tree]:
    return [child for child in tree["children"] if isinstance(child, dict) and "type" in child]


def _complaints(node: Node, path: Path, text: str) -> Iterator[tuple[str, str]]:
    try:
        tree = parse(text)
    except InputError as error:
        yield f"{text[:80]!r}: {error.sentence}: {_reason(error)}", "see https://jmespath.org/specification.html"
        return
    for name in sorted(_functions(tree) - _FUNCTIONS):
        yield f"There is no function {name}() in {text!r}", fields.nearest(name, tuple(sorted(_FUNCTIONS)))
    of_element = isinstance(node.work, Each) and path[0] == "input" and path[-1] == FROM
    roots = _ROOTS_OF_AN_ELEMENT if of_element else _ROOTS
    before = {edge.node for edge in node.after}
    for root, below in dict.fromkeys(_references(tree)):
        if root not in roots:
            yield f"There is no {root!r} to see in {text!r}", fields.nearest(root, tuple(sorted(roots)))
        elif root in ("results", "states") and below is not None and below not in before:
            yield f"{text!r} looks at {below!r}, which {node.name!r} does not come after", f"add {below} to `after`"


def _functions(tree: Tree) -> set[str]:
    own = {tree["value"]} if tree["type"] == "function_expression" else set()
    return own.union(*(_functions(child) for child in _children(tree)))


def _references(tree: Tree) -> Iterator[tuple[str, str | None]]:
    """What the expression reads of the scope: `results.build.x` is `results` and `build`."""
    children = _children(tree)
    match tree["type"]:
        case "field":
            yield tree["value"], None
        case "expref":
            return
        case "subexpression" if [child["type"] for child in children[:2]] == ["field", "field"]:
            yield children[0]["value"], children[1]["value"]
        case kind:
            for child in children[:1] if kind in _MOVING else children:
                yield from _references(child)
