"""The parts of a code review: its findings with their severities, and the run of ruff.

Ruff runs once over all files, and its JSON output becomes findings.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, TypeAdapter

from agents.tools.child import run_child
from agents.tools.sources import SourceFile
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
    """Ruff's code, such as `S602`."""

    message: str


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Return findings sorted by severity, worst first, then by file and line."""
    return sorted(findings, key=lambda found: (found.severity.rank, found.file, found.line, found.rule))


SELECTED = "E4,E7,E9,F,B,S,ASYNC,C4,DTZ,PERF,PIE,PLE,PLW,PTH,RET,RUF,SIM,TRY,UP,W6"
SELECTED += ",C901,D100,D101,D102,D103,PLR0913,PLR0915"  # what is hard to change, or does not say what it promises
IGNORED = "ASYNC109,S101,S603,S607,RUF001,RUF002,RUF003,RUF100,TRY003"  # matters of taste (a parameter `timeout`)
_MOST_PARAMETERS = 6
# A fragment knows neither the imports above it nor the uses below it.
_NEEDS_WHOLE_FILE = ("E402", "F401", "F404", "F704", "F706", "F811", "F82", "F841", "PLE0117", "PLE0118", "PLE1142")
_INVALID = "invalid-syntax"
_UNPARSED = (None, _INVALID, "E902")
_ERRORS = ("B006", "E9", "F6", "F7", "F82", "PLE", "S102", "S110", "S112", "S301", "S307", "S602", "S604", "S605")
_WARNINGS = ("F", "B", "S", "ASYNC", "C901", "PLR0915", "PLW", "DTZ", "TRY", "RUF006")
_TIMEOUT_SECONDS = 120


class _Location(BaseModel):
    row: int = 1


class _Diagnostic(BaseModel):
    code: str | None = None
    filename: str
    location: _Location | None = None
    message: str


_DIAGNOSTICS = TypeAdapter(list[_Diagnostic])


async def lint(sources: Sequence[SourceFile], workspace: Path) -> tuple[list[Finding], list[str]]:
    """Run ruff over the sources; return its findings on the lines to review, and the files that do not parse.

    The lines to review are all, or those that a diff adds. The run reads no configuration of the project, so
    the same code gets the same findings everywhere.

    Raises:
        SetupError: not retryable; ruff is not installed beside the agent, or fails.
    """
    report = workspace / "ruff.json"
    argv = [
        *_ruff(), "check", "--isolated", "--no-cache", "--exit-zero", "--quiet", "--output-format", "json",
        "--target-version", "py311", "--select", SELECTED, "--ignore", IGNORED,
        "--config", f"lint.pylint.max-args={_MOST_PARAMETERS}",
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


def _read(report: Path, sources: Sequence[SourceFile]) -> tuple[list[Finding], list[str]]:
    by_path = {str(source.path.resolve()): source for source in sources}
    said = _DIAGNOSTICS.validate_python(json.loads(report.read_bytes() or b"[]"))
    found = [(diagnostic, by_path[diagnostic.filename]) for diagnostic in said if diagnostic.filename in by_path]
    unparsed = dict.fromkeys(source.name for diagnostic, source in found if diagnostic.code in _UNPARSED)
    findings = (_finding(diagnostic, source) for diagnostic, source in found)
    return [finding for finding in findings if finding is not None], list(unparsed)


def _finding(said: _Diagnostic, source: SourceFile) -> Finding | None:
    """Convert ruff's diagnostic to a finding; None for a line not under review, or a rule useless for the source."""
    code = said.code or _INVALID
    line = said.location.row if said.location else 1
    if source.lines is not None and line not in source.lines:
        return None
    if not source.whole and code.startswith((*_NEEDS_WHOLE_FILE, _INVALID)):
        return None
    if code.startswith("D1") and (not source.whole or _is_test(source.name)):
        return None
    return Finding(file=source.name, line=line, severity=_severity(code), rule=code, message=said.message[:300])


def _severity(code: str) -> Severity:
    if code.startswith((*_ERRORS, _INVALID)):
        return Severity.ERROR
    return Severity.WARNING if code.startswith(_WARNINGS) else Severity.INFO


def _is_test(name: str) -> bool:
    path = PurePosixPath(name)
    return path.name.startswith(("test_", "conftest")) or "tests" in path.parts
