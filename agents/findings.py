"""What a review says: findings, each at a line, each with a severity."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict


class Severity(StrEnum):
    """How much a finding matters: `error` is likely a defect, `warning` a risk, `info` a matter of style."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)


class Finding(BaseModel):
    """One remark about one line."""

    model_config = ConfigDict(frozen=True)

    file: str
    """As the request named it: the requested path joined with the path below it."""

    line: int
    """From 1."""

    severity: Severity
    rule: str
    """Ruff's code (`S602`), or the name of a rule of our own (`long-function`)."""

    message: str


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Sorted by severity, then by place."""
    return sorted(findings, key=lambda found: (found.severity.rank, found.file, found.line, found.rule))
