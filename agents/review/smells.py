"""The syntax-tree part of a code review: code that is hard to change, and swallowed errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import PurePosixPath

from agents.review.findings import Finding, Severity
from agents.tools.sources import UNREADABLE, SourceFile, read_source

MAX_FUNCTION_LINES = 50
MAX_PARAMETERS = 6
MAX_COMPLEXITY = 10

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Remark = tuple[int, Severity, str, str]
_MUTABLE_CALLS = frozenset({"list", "dict", "set", "bytearray", "defaultdict", "deque"})
_BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.ExceptHandler,
    ast.IfExp,
    ast.Assert,
    ast.comprehension,
)


def find_smells(source: SourceFile) -> list[Finding] | None:
    """Return a file's code smells on the lines to review: all, or those that a diff adds; None if it does not parse."""
    try:
        tree = ast.parse(read_source(source))
    except UNREADABLE:
        return None
    private = not source.whole or _is_test(source.name)
    return [
        Finding(file=source.name, line=line, severity=severity, rule=rule, message=message)
        for line, severity, rule, message in _remarks(tree, skip_docstrings=private)
        if source.lines is None or line in source.lines
    ]


def _is_test(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name.startswith(("test_", "conftest")) or "tests" in path.parts


def _remarks(tree: ast.Module, *, skip_docstrings: bool) -> Iterator[_Remark]:
    for node in ast.walk(tree):
        if isinstance(node, _Function):
            yield from _about_function(node)
        elif isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and _swallows(node.body):
            yield (
                node.lineno, Severity.ERROR, "swallowed-exception",
                "every exception is caught and dropped; name the one you expect, or log and raise again",
            )  # fmt: skip
    if not skip_docstrings:
        yield from _without_docstring(tree)


def _about_function(function: _Function) -> Iterator[_Remark]:
    line, name = function.lineno, function.name
    length = _length(function)
    if length > MAX_FUNCTION_LINES:
        said = f"`{name}` has {length} lines, more than {MAX_FUNCTION_LINES}; split it by what it does"
        yield line, Severity.WARNING, "long-function", said
    parameters = _parameters(function)
    if parameters > MAX_PARAMETERS:
        said = f"`{name}` takes {parameters} parameters, more than {MAX_PARAMETERS}; group them in a value"
        yield line, Severity.INFO, "many-parameters", said
    complexity = 1 + sum(_weight(node) for node in _own_nodes(function))
    if complexity > MAX_COMPLEXITY:
        said = f"`{name}` has {complexity} paths, more than {MAX_COMPLEXITY}; split it or use a table"
        yield line, Severity.WARNING, "complex-function", said
    for default in [*function.args.defaults, *function.args.kw_defaults]:
        if default is not None and _is_mutable(default):
            said = f"`{name}` has a mutable default, shared by all calls; use None and create it inside"
            yield default.lineno, Severity.ERROR, "mutable-default", said


def _length(function: _Function) -> int:
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (function.end_lineno or body[-1].lineno) - body[0].lineno + 1 if body else 0


def _parameters(function: _Function) -> int:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return len(arguments) - (bool(arguments) and arguments[0].arg in {"self", "cls"})


def _own_nodes(function: _Function) -> Iterator[ast.AST]:
    """Yield the syntax nodes of a function's body, without what is inside of nested functions, lambdas and classes."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, _Function | ast.ClassDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))


def _weight(node: ast.AST) -> int:
    """Return how much a node adds to McCabe's complexity: 1 if it branches, the number of cases of a `match`, or 0."""
    if isinstance(node, ast.Match):
        return len(node.cases)
    return int(isinstance(node, _BRANCHES))


def _is_mutable(default: ast.expr) -> bool:
    if isinstance(default, ast.Call):
        return isinstance(default.func, ast.Name) and default.func.id in _MUTABLE_CALLS
    return isinstance(default, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def _is_broad(caught: ast.expr | None) -> bool:
    if isinstance(caught, ast.Tuple):
        return any(_is_broad(part) for part in caught.elts)
    return caught is None or (isinstance(caught, ast.Name) and caught.id in {"Exception", "BaseException"})


def _swallows(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(statement, ast.Pass | ast.Continue | ast.Break)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in body
    )


def _without_docstring(tree: ast.Module) -> Iterator[_Remark]:
    if tree.body and ast.get_docstring(tree) is None:
        yield 1, Severity.INFO, "missing-docstring", "the module does not say what it is for"
    pending: list[ast.Module | ast.ClassDef] = [tree]
    while pending:
        for node in pending.pop().body:
            if not isinstance(node, _Function | ast.ClassDef) or node.name.startswith("_"):
                continue
            if ast.get_docstring(node) is None and not _is_overload(node):
                said = f"`{node.name}` is public and does not say what it promises"
                yield node.lineno, Severity.INFO, "missing-docstring", said
            if isinstance(node, ast.ClassDef):
                pending.append(node)


def _is_overload(node: _Function | ast.ClassDef) -> bool:
    names = [mark.attr if isinstance(mark, ast.Attribute) else getattr(mark, "id", "") for mark in node.decorator_list]
    return bool({"overload", "override", "setter"} & set(names))
