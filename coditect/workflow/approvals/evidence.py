"""The evidence for automatic approval of an action: its recent outcomes, and the statistics that judge them.

A kind of action is a capability under a rule. Its success is known no better than its outcomes allow, so the lower
bound of Wilson's score interval decides, not the share: ten successes of ten prove less than a hundred of a hundred.
See https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from coditect.workflow.approvals.policy import Learning, Risk

Z = 1.96
"""The standard normal quantile of a 95 % interval."""
_ORDER = tuple(Risk)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The recent outcomes of one kind of action, and whether they are enough to approve it."""

    outcomes: int
    good: int
    streak: int
    """The number of good outcomes since the last bad one, or of all if none is bad."""
    bound: float
    """The lower bound of the success rate, 0 to 1; 0 without outcomes."""
    learning: Learning
    risk: Risk

    @classmethod
    def of(cls, recent: Sequence[bool], learning: Learning, risk: Risk) -> Evidence:
        """Build the evidence from outcomes (True: good), oldest first; only the newest `learning.window` ones count."""
        counted = recent[-learning.window :]
        streak = next((back for back, good in enumerate(reversed(counted)) if not good), len(counted))
        return cls(len(counted), sum(counted), streak, wilson(sum(counted), len(counted)), learning, risk)

    @property
    def reasons_against(self) -> list[str]:
        """The reasons why the outcomes do not approve the action; empty when they do."""
        learning, told = self.learning, list[str]()
        if _ORDER.index(self.risk) > _ORDER.index(learning.ceiling):
            told.append(f"its risk, {self.risk.value}, is above the ceiling, {learning.ceiling.value}")
        if self.bound < learning.threshold:
            told.append(f"the lower bound {self.bound:.4f} is below the threshold {learning.threshold:g}")
        if self.streak < self.outcomes and self.streak < learning.recovery:
            told.append(f"only {self.streak} of {learning.recovery} good outcomes followed the last bad one")
        return told

    def facts(self) -> dict[str, Any]:
        """Return the evidence as JSON values, with every step of the arithmetic as text."""
        n, p = self.outcomes, self.good / self.outcomes if self.outcomes else 0.0
        steps = [f"n = {n} recent outcomes (of at most {self.learning.window}), {self.good} good, p = {p:.4f}"]
        if n:
            steps.append(
                f"(p + z²/2n - z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n) = ({p:.4f} + {Z * Z / (2 * n):.4f} - "
                f"{Z}·√({p * (1 - p) / n:.6f} + {Z * Z / (4 * n * n):.6f})) / {1 + Z * Z / n:.4f} = {self.bound:.4f}"
            )
        verdict = self.reasons_against or [f"{self.bound:.4f} reaches the threshold {self.learning.threshold:g}"]
        return {
            "outcomes": n,
            "good": self.good,
            "since_bad": self.streak,
            "lower_bound": round(self.bound, 6),
            "threshold": self.learning.threshold,
            "ceiling": self.learning.ceiling.value,
            "arithmetic": [*steps, *verdict],
        }


def wilson(good: int, outcomes: int) -> float:
    """Return the lower bound of the 95 % Wilson score interval of a success rate; 0 without outcomes."""
    if not outcomes:
        return 0.0
    p, square = good / outcomes, Z * Z
    spread = Z * sqrt(p * (1 - p) / outcomes + square / (4 * outcomes * outcomes))
    bound = (p + square / (2 * outcomes) - spread) / (1 + square / outcomes)
    return min(p, max(0.0, bound))  # without a success rounding may leave it a little above 0
