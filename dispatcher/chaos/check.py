"""What came of a check, and how sure one may be of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RULE_OF_THREE = 3.0
"""Of `n` trials none failed: with 95 % confidence fewer than 3/n of them fail (Hanley and Lippman-Hand, 1983)."""
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One promise, checked."""

    invariant: str
    sentence: str
    """What is promised."""
    checked: int
    """How many things could have broken it."""
    violations: tuple[str, ...] = ()
    """What broke it, each told for a person."""

    @property
    def passed(self) -> bool:
        """Whether nothing broke it. Nothing checked is nothing proven, and no failure."""
        return not self.violations

    @property
    def bound(self) -> float | None:
        """The share of failures that is excluded with 95 % confidence; None when it failed or nothing was checked."""
        return min(1.0, RULE_OF_THREE / self.checked) if self.passed and self.checked else None

    @property
    def line(self) -> str:
        """One line for a person."""
        word = "pass" if self.passed else "FAIL"
        if self.bound is None:
            sure = f"{len(self.violations)} violations" if self.violations else "nothing to check"
        else:
            sure = f"< {self.bound:.2g} at 95 %"
        return f"{word}  {self.invariant:<22} {self.checked:>8} checked, {sure:<20} {self.sentence}"


def lines(checks: Sequence[CheckResult]) -> list[str]:
    """All of them for a person, with the first violations of each."""
    told: list[str] = []
    for one in checks:
        told.append(one.line)
        told += [f"        {violation}" for violation in one.violations[:_MOST_SHOWN]]
        if len(one.violations) > _MOST_SHOWN:
            told.append(f"        and {len(one.violations) - _MOST_SHOWN} more")
    return told
