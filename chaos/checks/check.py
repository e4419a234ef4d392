"""The result of checking one promise on a history, with its statistical confidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RULE_OF_THREE = 3.0
"""The 3 of the rule of three: `n` trials without a failure exclude rates above 3/n with 95 % confidence.

After Hanley and Lippman-Hand, 1983.
"""
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of checking one promise on a history: the number of cases, and the violations."""

    invariant: str
    sentence: str
    """The promise, in a few words for a person."""
    checked: int
    """The number of cases in the history that could have broken the promise."""
    violations: tuple[str, ...] = ()
    """The violations, each as a sentence for a person."""

    @property
    def passed(self) -> bool:
        """Tell whether the history has no violation of the promise; without any case the check passes, too."""
        return not self.violations

    @property
    def bound(self) -> float | None:
        """The failure rate that the check excludes with 95 % confidence; None after a violation or without a case."""
        return min(1.0, RULE_OF_THREE / self.checked) if self.passed and self.checked else None

    @property
    def line(self) -> str:
        """The check's result as one line of text for a person."""
        word = "pass" if self.passed else "FAIL"
        if self.bound is None:
            sure = f"{len(self.violations)} violations" if self.violations else "nothing to check"
        else:
            sure = f"< {self.bound:.2g} at 95 %"
        return f"{word}  {self.invariant:<22} {self.checked:>8} checked, {sure:<20} {self.sentence}"


def lines(checks: Sequence[CheckResult]) -> list[str]:
    """Return the results of checks as lines for a person, with the first violations of each."""
    told: list[str] = []
    for one in checks:
        told.append(one.line)
        told += [f"        {violation}" for violation in one.violations[:_MOST_SHOWN]]
        if len(one.violations) > _MOST_SHOWN:
            told.append(f"        and {len(one.violations) - _MOST_SHOWN} more")
    return told
