"""The result of a check, with its statistical confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RULE_OF_THREE = 3.0
"""The rule of three: `n` trials without a failure exclude failure rates above 3/n with 95 % confidence.

After Hanley and Lippman-Hand, 1983.
"""
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of checking one promise on a history: the number of cases, and the violations."""

    invariant: str
    sentence: str
    """The promise."""
    checked: int
    """The number of cases that could have broken the promise."""
    violations: tuple[str, ...] = ()
    """The violations, each as a sentence for a person."""

    @property
    def passed(self) -> bool:
        """Whether nothing broke the promise; without any case the check passes and proves nothing."""
        return not self.violations

    @property
    def bound(self) -> float | None:
        """The failure rate that is excluded with 95 % confidence; None after a failure or without any case."""
        return min(1.0, RULE_OF_THREE / self.checked) if self.passed and self.checked else None

    @property
    def line(self) -> str:
        """The result as one line of text for a person."""
        word = "pass" if self.passed else "FAIL"
        if self.bound is None:
            sure = f"{len(self.violations)} violations" if self.violations else "nothing to check"
        else:
            sure = f"< {self.bound:.2g} at 95 %"
        return f"{word}  {self.invariant:<22} {self.checked:>8} checked, {sure:<20} {self.sentence}"


def lines(checks: Sequence[CheckResult]) -> list[str]:
    """Return the results as lines for a person, with the first violations of each."""
    told: list[str] = []
    for one in checks:
        told.append(one.line)
        told += [f"        {violation}" for violation in one.violations[:_MOST_SHOWN]]
        if len(one.violations) > _MOST_SHOWN:
            told.append(f"        and {len(one.violations) - _MOST_SHOWN} more")
    return told
