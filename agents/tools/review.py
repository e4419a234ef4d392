"""The parts of a code review: its findings with their severities, the run of ruff, and checks of the syntax tree.

Ruff runs once over all files, and its JSON output becomes findings. The checks of the syntax tree find code that is
hard to change, and swallowed errors.
"""

from __future__ import annotations

import ast
import asyncio
import json
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, TypeAdapter

from agents.tools.child import run_child
from agents.tools.sources import UNREADABLE, SourceFile, read_source
from coditect.errors import SetupError


class Severity(StrEnum):
    """The severity of a finding: `error` is likely a defect, `warning` a risk, `info` a matter of style."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """The severity as a sort key; 0 is the worst."""
        return list(Severity).index(self)


class Finding(BaseModel):
    """A remark of a code review about one line of a file."""

    model_config = ConfigDict(frozen=True)

    file: str
    """The file's name as in the request: the requested path joined with the path below it."""

    line: int
    """The line number, from 1."""

    severity: Severity
    rule: str
    """Ruff's code (`S602`), or the name of the reviewer's own rule (`long-function`)."""

    message: str


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Return findings sorted by severity, worst first, then by file and line."""
    return sorted(findings, key=lambda found: (found.severity.rank, found.file, found.line, found.rule))


# Not here: what `smells.py` says better (complexity, length, mutable defaults, swallowed exceptions), and
# what is a matter of taste (a parameter called `timeout`).
SELECTED = "E4,E7,E9,F,B,S,ASYNC,C4,DTZ,PERF,PIE,PLE,PLW,PTH,RET,RUF,SIM,TRY,UP,W6"
IGNORED = "ASYNC109,B006,S101,S110,S112,S603,S607,RUF001,RUF002,RUF003,RUF100,TRY003"
# A fragment knows neither the imports above it nor the uses below it.
_NEEDS_WHOLE_FILE = frozenset(
    {
        "E402",
        "F401",
        "F404",
        "F704",
        "F706",
        "F811",
        "F821",
        "F822",
        "F823",
        "F841",
        "PLE0117",
        "PLE0118",
        "PLE1142",
    }
)
_ERRORS = ("E9", "F6", "F7", "F82", "PLE", "S102", "S301", "S307", "S602", "S604", "S605", "invalid-syntax")
_WARNINGS = ("F", "B", "S", "ASYNC", "PLW", "DTZ", "TRY", "RUF006")
_TIMEOUT_SECONDS = 120


class _Location(BaseModel):
    row: int = 1


class _Diagnostic(BaseModel):
    code: str | None = None
    filename: str
    location: _Location | None = None
    message: str


_DIAGNOSTICS = TypeAdapter(list[_Diagnostic])


async def lint(sources: Sequence[SourceFile], workspace: Path) -> list[Finding]:
    """Run ruff over the sources, and return its findings on the lines to review: all, or those that a diff adds.

    The run reads no configuration of the project, so the same code gets the same findings everywhere.

    Raises:
        SetupError: not retryable; ruff is not installed beside the agent, or fails.
    """
    report = workspace / "ruff.json"
    argv = [
        *_ruff(), "check", "--isolated", "--no-cache", "--exit-zero", "--quiet", "--output-format", "json",
        "--target-version", "py311", "--select", SELECTED, "--ignore", IGNORED,
        "--output-file", str(report), "--",
        *(str(source.path.resolve()) for source in sources),
    ]  # fmt: skip
    ended = await run_child(argv, folder=workspace, log=workspace / "ruff.log", timeout_seconds=_TIMEOUT_SECONDS)
    if ended.code != 0 or ended.timed_out:
        raise SetupError("ruff failed; install it beside the agent: pip install ruff", output=ended.tail)
    return await asyncio.to_thread(_read, report, sources)


def _ruff() -> list[str]:
    beside = shutil.which("ruff", path=sysconfig.get_path("scripts"))
    return [beside] if beside else [sys.executable, "-m", "ruff"]  # the module costs a Python start


def _read(report: Path, sources: Sequence[SourceFile]) -> list[Finding]:
    by_path = {str(source.path.resolve()): source for source in sources}
    found = _DIAGNOSTICS.validate_python(json.loads(report.read_bytes() or b"[]"))
    findings = (_finding(said, by_path[said.filename]) for said in found if said.filename in by_path)
    return [finding for finding in findings if finding is not None]


def _finding(said: _Diagnostic, source: SourceFile) -> Finding | None:
    """Convert ruff's diagnostic to a finding; None for a line not under review, or a rule useless for a fragment."""
    code = said.code or "invalid-syntax"
    line = said.location.row if said.location else 1
    if source.lines is not None and line not in source.lines:
        return None
    if not source.whole and (code in _NEEDS_WHOLE_FILE or code == "invalid-syntax"):
        return None
    return Finding(file=source.name, line=line, severity=_severity(code), rule=code, message=said.message[:300])


def _severity(code: str) -> Severity:
    if code.startswith(_ERRORS):
        return Severity.ERROR
    return Severity.WARNING if code.startswith(_WARNINGS) else Severity.INFO


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
