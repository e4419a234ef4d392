"""The findings of a code review, each with a file, a line and a severity."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


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
