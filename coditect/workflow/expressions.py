"""Evaluation of expressions in workflows: JMESPath over the values visible to a node, at a bounded cost.

An expression is untrusted text. An expression can read the given scope and nothing else, has JMESPath's own
functions and no others, and is refused when it is long, deep, or takes too many steps. A step is one value that is
copied, compared or handed to a function; one evaluated part of the expression counts as 8 steps, since it takes so much
longer. JMESPath can double a value with a few characters, so results are weighed as they are made.

====================  =========================================
length                1,000 characters
depth                 64 levels
steps                 2,000,000 for all expressions of one node,
                      for all elements of a map
====================  =========================================

`workflow/template.py` describes the scope.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

from coditect.errors import InputError, InvalidWorkflow, Problem, missing_extra
from coditect.workflow import fields
from coditect.workflow.definition import Definition, Each, Node, Repeat, WaitUntil
from coditect.workflow.template import FROM, Path, fill, node_expressions

try:
    import jmespath
    from jmespath.functions import Functions
    from jmespath.visitor import Options, TreeInterpreter
except ModuleNotFoundError as _missing:
    raise missing_extra("workflow") from _missing

MOST_DEPTH = 64
MAX_EXPRESSION_STEPS = 2_000_000
"""The most steps of one node's expressions: 0.25 s of work, or 1 s on a machine four times slower."""
STEPS_PER_VISIT = 8
"""The steps charged for each evaluated part of an expression, which takes about a microsecond."""

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`((?:[^`\\]|\\.)*)`", re.DOTALL)
CHARACTERS_PER_STEP = 64
_FUNCTIONS = frozenset(Functions.FUNCTION_TABLE)
_REFUSALS = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RecursionError)
"""The exceptions by which JMESPath refuses an expression or a value that does not fit."""
_ROOTS = frozenset({"input", "results", "states"})
_LOOP: Path = ("repeat", "until")
"""The place of the condition that ends a loop, which sees the task's result and nothing else."""
_ROOTS_OF_AN_ELEMENT = _ROOTS | {"item", "index"}
_MOVING = frozenset(
    {"subexpression", "index_expression", "pipe", "projection", "value_projection", "filter_projection"}
)
"""The parts of an expression whose first child reads the scope and whose other children read its result."""

Tree = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scope:
    """The values that a node's expressions can read: the workflow's input, and results and states of predecessors."""

    input: Any
    """The workflow's own input."""
    results: Mapping[str, Any]
    """The values of the direct predecessors; null for a predecessor without a value."""
    states: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """Return the scope as the JSON object that JMESPath evaluates."""
        return {"input": self.input, "results": dict(self.results), "states": dict(self.states)}


class Account:
    """The count of evaluation steps and its limit, which all expressions of one node share.

    With a lower bound than `MAX_EXPRESSION_STEPS`, an `overdrawn` account only shows that the expressions take more
    steps than that.
    """

    def __init__(self, most_steps: int = MAX_EXPRESSION_STEPS) -> None:
        self.spent = 0
        self._most_steps = most_steps

    @property
    def overdrawn(self) -> bool:
        """Tell whether the node's expressions have taken more steps than the limit allows."""
        return self.spent > self._most_steps

    def charge(self, steps: int) -> None:
        """Count evaluation steps against the node's limit, and raise an error beyond the limit.

        Raises:
            InputError: when the limit is exceeded.
        """
        self.spent += steps
        if self.spent > self._most_steps:
            raise InputError("It takes too many steps", most_steps=self._most_steps)

    def weigh(self, value: Any) -> None:
        """Count steps for the size of a value against the limit; a part that occurs several times counts each time.

        Raises:
            InputError: when the bound is exceeded.
        """
        to_weigh = [value]
        while to_weigh:
            part = to_weigh.pop()
            self.charge(1)
            if isinstance(part, str):
                self.charge(len(part) // CHARACTERS_PER_STEP)
            elif isinstance(part, list):
                self.charge(len(part))
                to_weigh += part
            elif isinstance(part, dict):
                self.charge(len(part))
                to_weigh += part.values()


def condition_holds(node: Node, scope: Scope, account: Account | None = None) -> bool:
    """Tell whether a node has no `when`, or its `when` finds anything but null, false and what is empty.

    0 holds. A node without `when` holds.

    Raises:
        InvalidWorkflow: when the expression fails, with node and expression; not retryable, since equal values fail
            equally.
    """
    if node.when is None:
        return True
    return holds(_find(node.name, scope.document(), account or Account(), node.when))


def holds(found: Any) -> bool:
    """Tell whether the result of a condition counts as true: anything but null, false and what is empty."""
    return not (found is None or found is False or found in ("", [], {}))


def node_input(node: Node, scope: Scope, account: Account | None = None) -> Any:
    """Evaluate a node's input template, and return the input of its task or child workflow; {} without a template.

    Raises:
        InvalidWorkflow: when an expression fails, as in `condition_holds`.
    """
    return _input(node, scope.document(), account or Account())


def instant_of(node: Node, scope: Scope, account: Account) -> Any:
    """Return the instant of a node that waits until an instant, as given or as its expression finds it.

    Raises:
        InvalidWorkflow: when an expression fails, as in `condition_holds`.
    """
    assert isinstance(node.work, WaitUntil)
    return fill(node.work.instant, partial(_find, node.name, scope.document(), account))


def element_inputs(node: Node, scope: Scope, account: Account | None = None) -> Iterator[Any]:
    """Yield the inputs of a map's tasks, one for each list element; each input is evaluated only when requested.

    Raises:
        InvalidWorkflow: when an expression fails; and before the first input, when there is no list, or a list over the
            limit.
    """
    assert isinstance(node.work, Each)
    account, document = account or Account(), scope.document()
    over, find = node.work.over, partial(_find, node.name, document, account)
    elements = find(over) if isinstance(over, str) else fill(over, find)
    if not isinstance(elements, list):
        fix = _input_fix(str(over), document, "a list") or "`over` has to find a list"
        raise _failure(node.name, str(over), f"a list is expected, not {_kind(elements)}", fix)
    if len(elements) > node.work.limit:
        reason = f"{len(elements)} elements are more than the limit of {node.work.limit}"
        raise _failure(node.name, str(over), reason, "raise `limit`, or find fewer")
    return (_input(node, document | {"item": item, "index": index}, account) for index, item in enumerate(elements))


def check_expressions(definition: Definition) -> tuple[Problem, ...]:
    """Return the problems in all of a definition's expressions: syntax, functions, names that the node cannot see."""
    own = tuple(
        Problem(("nodes", node.name, *path), sentence, fix)
        for node in definition.nodes
        for path, text in (*node_expressions(node), *_loop_expressions(node))
        for sentence, fix in _complaints(node, path, text)
    )
    of_children = (
        replace(problem, path=("workflows", child.name, *problem.path))
        for child in definition.workflows
        for problem in check_expressions(child)
    )
    return (*own, *of_children)


def _loop_expressions(node: Node) -> Iterator[tuple[Path, str]]:
    if node.call is not None and node.call.repeat is not None:
        yield _LOOP, node.call.repeat.until


def repeat_ends(repeat: Repeat, result: Any, account: Account) -> bool:
    """Tell whether a loop's condition holds for the result of an iteration.

    Raises:
        InvalidWorkflow: when the expression fails or takes too many steps.
    """
    return holds(_find("repeat", {"result": result}, account, repeat.until))


def check_roots(text: str, roots: Set[str]) -> None:
    """Check that an expression can be parsed, and reads nothing but the given names.

    Raises:
        InputError: when the expression is wrong, or reads another name.
    """
    if others := sorted({root for root, _ in _references(parse(text)) if root not in roots}):
        raise InputError(
            "The expression reads what is not there", expression=text[:80], given=others[:5], known=[*roots]
        )


def evaluate(text: str, document: Mapping[str, Any], account: Account) -> Any:
    """Evaluate an expression over any document, not only a node's scope; return the result, None if it finds nothing.

    Raises:
        InvalidWorkflow: when the expression fails or takes too many steps.
    """
    return _find("expression", document, account, text)


@lru_cache(maxsize=4096)
def parse(text: str) -> Tree:
    """Parse a JMESPath expression into its tree.

    Raises:
        InputError: when the text is no expression, too long, or nested too deep; with the reason.
    """
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
    """Raise an error for invalid JSON between backquotes, which the JMESPath library would take as text."""
    for found in _QUOTED.finditer(text):
        if found[1] is not None:
            try:
                json.loads(found[1].replace("\\`", "`"))
            except (ValueError, RecursionError) as error:
                reason = "between backquotes is JSON; text is in single quotes"
                raise InputError("This is no JMESPath expression", expression=text, reason=reason) from error


def _find(node: str, document: Mapping[str, Any], account: Account, text: str) -> Any:
    """Evaluate an expression of a node over a document, and return the result; None where nothing is found."""
    interpreter = _CountingInterpreter(account)
    try:
        return interpreter.weighed(interpreter.visit(parse(text), document))
    except InputError as error:
        raise _failure(node, text, _reason(error), "correct the expression") from error
    except _REFUSALS as error:
        fix = _input_fix(text, document) or "the values are not what it is written for"
        raise _failure(node, text, str(error), fix) from error


def _input(node: Node, document: Mapping[str, Any], account: Account) -> Any:
    if node.input is None:
        return {}
    return fill(node.input, partial(_find, node.name, document, account))


def _failure(node: str, text: str, reason: str, fix: str) -> InvalidWorkflow:
    short_reason = " ".join(reason.split())[:200]
    return InvalidWorkflow(
        "An expression could not be evaluated", node=node, expression=text, reason=short_reason, fix=fix
    )


def _input_fix(text: str, document: Mapping[str, Any], wanted: str = "") -> str:
    """Return which input to start the workflow with, if an expression reads from its input what is not there.

    `wanted` is what the expression has to find; with it the fix is also about what is there. Empty for other faults.
    """
    value = document.get("input")
    names = [name for root, name in _references(parse(text)) if root == "input" and name is not None]
    for name in names:
        if not isinstance(value, dict):
            return f"start the workflow with an object that has {name!r} as its input, which is {_kind(value)} now"
        if name not in value:
            has = f"has only {', '.join(map(repr, [*value][:5]))}" if value else "is empty"
            return f"start the workflow with an input that has {name!r}; this one {has}"
    is_direct = wanted and len(names) == 1 and text.strip() == f"input.{names[0]}"
    return f"start the workflow with {wanted} as {names[0]!r} of its input" if is_direct else ""


def _kind(value: Any) -> str:
    """Return what kind of JSON a value is."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    return "null" if value is None else kinds.get(type(value), "a number")


def _reason(error: InputError) -> str:
    return str(error.facts.get("reason", error.sentence))


class _CountingInterpreter(TreeInterpreter):
    """A JMESPath interpreter that charges each evaluation step to an account."""

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
    """JMESPath's own functions, charging the size of their arguments to an account."""

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
    """Return the depth of an expression tree, counted without recursion, which a deep tree would exhaust."""
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
    if path == _LOOP:
        roots = frozenset({"result"})
    before = {edge.node for edge in node.after}
    for root, below in dict.fromkeys(_references(tree)):
        if root not in roots:
            near = "a loop sees the task's `result`" if path == _LOOP else fields.nearest(root, tuple(sorted(roots)))
            yield f"There is no {root!r} to see in {text!r}", near
        elif root in ("results", "states") and below is not None and below not in before:
            yield f"{text!r} looks at {below!r}, which {node.name!r} does not come after", f"add {below} to `after`"


def _functions(tree: Tree) -> set[str]:
    own = {tree["value"]} if tree["type"] == "function_expression" else set()
    return own.union(*(_functions(child) for child in _children(tree)))


def _references(tree: Tree) -> Iterator[tuple[str, str | None]]:
    """Yield the names that an expression reads from the scope: `results.build.x` gives `results` and `build`."""
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
