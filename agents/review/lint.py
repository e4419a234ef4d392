"""The ruff part of a code review: one run over all files, whose JSON output becomes findings."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from agents.review.findings import Finding, Severity
from agents.tools.child import run_child
from agents.tools.sources import SourceFile
from coditect.errors import SetupError

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
