"""The approval policy as frozen values, and the judgement of one task or approval by it.

The first rule that matches decides; the policy's default decides where none does. What a rule cannot find out, because
its expression fails, no agent has registered the capability, or the input lies outside as a large value, counts against
the case: a rule that approves does not match then, and a rule that asks or refuses does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from math import sqrt
from typing import Any

from coditect.errors import InputError
from coditect.workflow.definition import OnTimeout
from coditect.workflow.expressions import Account, Scope, evaluate, holds

MAX_POLICY_STEPS = 50_000
"""The most evaluation steps of all expressions that judge one case, about 50 ms."""
ROOTS = frozenset({"input", "results", "states"})
"""The names that a rule's expression can read: the input of a task, or of the workflow with the values before."""
MOST_CONCERNED = 10_000
DEFAULT = "default"
"""The name under which a judgement by no rule is recorded."""


class Risk(StrEnum):
    """The harm that an action may do, as the operator sees it: low, medium or high."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Ruling(StrEnum):
    """The decision of a rule: approve automatically, ask a person, or refuse."""

    APPROVE = "approve"
    ASK = "ask"
    REFUSE = "refuse"


class Subject(StrEnum):
    """The kind of node that a rule is about: a task, or an approval."""

    TASK = "task"
    APPROVAL = "approval"


@dataclass(frozen=True, slots=True)
class CapabilityFacts:
    """The tags that agents register for a capability and for themselves, and their highest cost estimate."""

    tags: frozenset[str]
    """The tags of the capability, and of all agents that offer it."""
    cost: float
    """The highest estimate of the agents, in the fleet's own unit."""


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """A rule of the approval policy: a decision, and the conditions that must all hold for it."""

    name: str
    action: Ruling
    risk: Risk
    of: Subject | None = None
    """The kind of node that the rule is about; None for both."""
    capability: tuple[str, ...] = ()
    """Patterns of capabilities such as `deploy.*`, one of which must fit; empty for any."""
    tags: frozenset[str] = frozenset()
    """The tags that the capability must have, all of them."""
    cost_above: float | None = None
    """The cost estimate that the capability must exceed."""
    workflow: str = "*"
    """The pattern of the workflow's name."""
    node: str = "*"
    """The pattern of the node's name."""
    when: str | None = None
    """The expression over `input`, `results` and `states` that must hold."""
    timeout_ms: int | None = None
    """How long a task waits for an answer; None for ever. An approval node has a timeout of its own."""
    on_timeout: OnTimeout = OnTimeout.REJECT
    """The answer for a task that no person answered in time."""
    learn: bool = False
    """Whether good outcomes may approve what this rule would ask about; see `Learning`."""


@dataclass(frozen=True, slots=True)
class Learning:
    """The bounds within which past outcomes approve an action: certainty of success, how many count, highest risk."""

    threshold: float = 0.9
    """The lower confidence bound of success (Wilson, 95 %) from which an action is approved, 0.5 to 0.999."""
    window: int = 50
    """The number of recent outcomes that count, 10 to 200."""
    recovery: int = 10
    """The number of good outcomes in a row that must follow a bad one."""
    ceiling: Risk = Risk.MEDIUM
    """The highest risk that may be approved so; never high."""


@dataclass(frozen=True, slots=True)
class ApprovalCase:
    """A task or an approval node that the approval policy is to judge, with what its rules look at."""

    subject: Subject
    capability: str
    """The capability of the task, or the one that an approval is about; empty when it names none."""
    workflow: str
    """The name of the workflow."""
    node: str
    document: Callable[[], Mapping[str, Any] | None]
    """A function that returns what expressions read, called once at most; None when the input cannot be read here."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The decision of the policy about one case, with the rule and its reason."""

    action: Ruling
    risk: Risk
    rule: str
    why: str
    matched: ApprovalRule | None = None
    """The rule that decided; None for the default."""


@dataclass(frozen=True, slots=True)
class ApprovalPolicy:
    """An approval policy: rules in order, the defaults, and the bounds of learning."""

    rules: tuple[ApprovalRule, ...]
    default_task: Ruling = Ruling.APPROVE
    default_approval: Ruling = Ruling.ASK
    learning: Learning | None = None
    """The bounds of learned approval; None when nothing is learned."""
    digest: str = ""
    """The first 12 digits of the SHA-256 of the policy's file, which every decision by the policy records."""
    facts: Callable[[str], CapabilityFacts | None] = field(default=lambda _: None, compare=False)
    """A function that returns what is registered about a capability; None when it is unknown."""
    answer_key: str | None = field(default=None, repr=False)
    """The key that a person's answer must be signed with; None takes answers without a signature."""
    concerned: dict[tuple[Subject, str], bool] = field(default_factory=dict, compare=False, repr=False)
    """The remembered answers of `may_concern`, which only the policy itself decides."""

    def default(self, subject: Subject) -> Ruling:
        """Return the decision about a node that no rule matches."""
        return self.default_task if subject is Subject.TASK else self.default_approval

    def may_concern(self, subject: Subject, capability: str) -> bool:
        """Tell whether any rule may match a node of this kind and capability, or its default is not to approve.

        The rules' other conditions are not checked. The answer is cached.
        """
        known = self.concerned.get((subject, capability))
        if known is None:
            if len(self.concerned) >= MOST_CONCERNED:
                self.concerned.clear()
            known = self.concerned[subject, capability] = self.default(subject) is not Ruling.APPROVE or any(
                rule.of in (None, subject) and _fits(rule.capability, capability) for rule in self.rules
            )
        return known

    def learns(self, rule: str) -> bool:
        """Tell whether the named rule learns: good outcomes may then approve what it would ask a person about."""
        return self.learning is not None and any(known.learn for known in self.rules if known.name == rule)

    def judge(self, case: ApprovalCase, account: Account) -> Judgement:
        """Return the first matching rule's decision, else the default; skip approving rules with an unknown condition.

        A condition that cannot be checked counts as met for a rule that asks or refuses. `account` limits evaluation
        steps.
        """
        unknown: list[str] = []
        document = cache(case.document)
        for rule in self.rules:
            unknown.clear()
            if not self._matches(rule, case, unknown) or not _expression_holds(rule, document, account, unknown):
                continue
            if unknown and rule.action is Ruling.APPROVE:
                continue
            why = f"rule {rule.name!r} matches"
            return Judgement(rule.action, rule.risk, rule.name, "; ".join([why, *unknown]), rule)
        return Judgement(self.default(case.subject), Risk.MEDIUM, DEFAULT, "no rule matches")

    def _matches(self, rule: ApprovalRule, case: ApprovalCase, unknown: list[str]) -> bool:
        """Tell whether all conditions but the expression hold or cannot be checked; add to `unknown` what cannot."""
        named = rule.of in (None, case.subject) and _fits(rule.capability, case.capability)
        if not (named and fnmatchcase(case.workflow, rule.workflow) and fnmatchcase(case.node, rule.node)):
            return False
        if not rule.tags and rule.cost_above is None:
            return True
        facts = self.facts(case.capability)
        if facts is None:
            unknown.append("no agent has registered the capability, so its tags and cost are unknown")
            return True
        return rule.tags <= facts.tags and (rule.cost_above is None or facts.cost > rule.cost_above)


def _expression_holds(
    rule: ApprovalRule, document: Callable[[], Mapping[str, Any] | None], account: Account, unknown: list[str]
) -> bool:
    if rule.when is None:
        return True
    found = document()
    if found is None:
        unknown.append("the expression cannot read the input, which is a large value or damaged")
        return True
    try:
        return holds(evaluate(rule.when, found, account))
    except InputError as error:
        unknown.append(f"the expression failed: {error.facts.get('reason', error.sentence)}")
        return True


def _fits(patterns: Sequence[str], name: str) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


# The evidence for automatic approval of an action: its recent outcomes, and the statistics that judge them.
#
# A kind of action is a capability under a rule. Its success is known no better than its outcomes allow, so the lower
# bound of Wilson's score interval decides, not the share: ten successes of ten prove less than a hundred of a hundred.
# See https://en.wikipedia.org/wiki/Binomial_proportion_confidence_interval#Wilson_score_interval.

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
        learning, reasons = self.learning, list[str]()
        if _ORDER.index(self.risk) > _ORDER.index(learning.ceiling):
            reasons.append(f"its risk, {self.risk.value}, is above the ceiling, {learning.ceiling.value}")
        if self.bound < learning.threshold:
            reasons.append(f"the lower bound {self.bound:.4f} is below the threshold {learning.threshold:g}")
        if self.streak < self.outcomes and self.streak < learning.recovery:
            reasons.append(f"only {self.streak} of {learning.recovery} good outcomes followed the last bad one")
        return reasons

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


# The artifacts that an approval requires before anybody is asked: expressions that must each find something.

MAX_ARTIFACT_CHARACTERS = 200
"""The most characters of an artifact's value that the audit trail keeps."""


def artifacts_of(required: Mapping[str, str], scope: Scope, account: Account) -> dict[str, Any]:
    """Evaluate the expression of each required artifact, and return the results by the artifacts' names.

    Raises:
        InvalidWorkflow: when an expression fails or takes too many steps.
    """
    document = scope.document()
    return {name: evaluate(text, document, account) for name, text in required.items()}


def missing(found: Mapping[str, Any]) -> list[str]:
    """Return the names of the artifacts that are null, false or empty."""
    return [name for name, value in found.items() if not holds(value)]
