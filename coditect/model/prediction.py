"""How an agent's attempts go: predicted by the features of an input that the capability names, and as they went lately.

::

    log(run time) = agent's base + Σ weight · feature          failures = agent's base + Σ weight · feature

A text, truth value or null is a feature of its own with the value 1, such as `language=cobol`; a number is one by the
logarithm of its size, and so is the length of a list or object, and the size of the input. The weights are learned
online, by a Kalman filter with a variance for each weight: of an error, a weight that is less known takes more. The
variances grow with time, so that an agent that changes is soon judged by its new attempts. Weights of failures halve
every 30 s without an attempt, since senders avoid the agent meanwhile.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

Features: TypeAlias = tuple[tuple[str, float], ...]
"""The features of one input, each with its value."""

MOST_FEATURES = 10
"""The most features that a capability names."""
LONGEST_VALUE = 40
"""The characters by which texts are told apart."""
BASE = ""
"""The feature that every input has: its weight is what the agent usually needs."""
SIZE = "input size"
MOST_WEIGHTS = 64
"""The most weights of one agent process, those that were used last, beside the base of each capability."""
PRIOR_VARIANCE = 1.0
"""The variance of an unknown weight, in squared logarithms of the run time: a factor of 2.7."""
DRIFT = 0.02
"""By how much the variance of a weight grows each second, up to that of an unknown one."""
TIME_NOISE = 0.1
"""The variance of the logarithm of the run time of equal tasks."""
FAILURE_NOISE = 0.5
FAILURE_HALF_LIFE_MS = 30_000


@dataclass(frozen=True, slots=True)
class Weight:
    """The influence of one input feature on the run time and the failures of an agent, learned from its tasks."""

    capability: str
    feature: str
    log_ms: float
    """The factor of the run time, as a logarithm; of the base, the logarithm of the milliseconds."""
    failing: float
    """What it adds to the share of attempts that fail."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The expected run time and success of one attempt, with the factors of which the run time is the product."""

    ran_ms: float
    success: float
    """The expected share of attempts that complete, in [0, 1]."""
    factors: tuple[tuple[str, float], ...]
    """The features of the input with the factor of each, the base first with its milliseconds."""

    @property
    def why(self) -> str:
        """The prediction and its reasons as text for people."""
        (_, base_ms), *others = self.factors
        parts = [f"usually {base_ms:.0f} ms", *(f"{name} x{factor:.2f}" for name, factor in others)]
        return f"predicted {self.ran_ms:.0f} ms, {self.success:.0%} completed ({', '.join(parts)})"


def features_of(names: Sequence[str], document: Any, body_bytes: int) -> Features:
    """Return the features of an input of so many bytes, by the names of its fields, such as `options.depth`."""
    found = [(BASE, 1.0), (SIZE, _scaled(body_bytes))]
    for name in names:
        value = document
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append((name, _scaled(value)))
        elif isinstance(value, Mapping | list):
            found.append((name, _scaled(len(value))))
        else:
            text = value if isinstance(value, str) else {None: "null", True: "true", False: "false"}[value]
            found.append((f"{name}={text[:LONGEST_VALUE]}", 1.0))
    return tuple(found)


def _scaled(number: float) -> float:
    """Return the logarithm of a number's size, about 0: -1 for 0, 0 for 15, and 1 more with each factor of 16."""
    return math.log2(1 + min(abs(number), 1e300)) / 4 - 1


def predict(weights: Iterable[Weight], capability: str, features: Features) -> Prediction | None:
    """Return what an agent's weights say of an input; None if the agent has learned nothing of the capability yet."""
    known = {weight.feature: weight for weight in weights if weight.capability == capability}
    if BASE not in known:
        return None
    used = [(name, value, known[name]) for name, value in features if name in known]
    failing = sum(weight.failing * value for _, value, weight in used)
    factors = tuple((name, _exp(weight.log_ms * value)) for name, value, weight in used)
    ran_ms = _exp(sum(weight.log_ms * value for _, value, weight in used))
    return Prediction(ran_ms, 1 - min(1.0, max(0.0, failing)), factors)


def _exp(logarithm: float) -> float:
    return math.exp(min(25.0, max(-25.0, logarithm)))


@dataclass(slots=True)
class _Learned:
    log_ms: float
    failing: float
    variance: float
    at_ms: int

    def age(self, now_ms: int) -> None:
        """Let the variance grow, and the failures fade, for the time since the last attempt."""
        passed_ms = max(0, now_ms - self.at_ms)
        self.variance = min(PRIOR_VARIANCE, self.variance + DRIFT * passed_ms / 1000)
        self.failing *= 0.5 ** (passed_ms / FAILURE_HALF_LIFE_MS)
        self.at_ms = now_ms


class Predictor:
    """The weights of one agent process, which learns from its attempts."""

    def __init__(self) -> None:
        self._learned: OrderedDict[tuple[str, str], _Learned] = OrderedDict()

    def weights(self, now_ms: int) -> tuple[Weight, ...]:
        """Return the weights as they count now."""
        for learned in self._learned.values():
            learned.age(now_ms)
        return tuple(Weight(*key, weight.log_ms, weight.failing) for key, weight in self._learned.items())

    def learn(self, capability: str, features: Features, ran_ms: float, *, completed: bool, now_ms: int) -> None:
        """Correct the weights of an input's features by how long its attempt ran, and whether it completed."""
        log_ms = math.log(max(ran_ms, 0.1))
        used = [(self._of((capability, name), log_ms, now_ms), value) for name, value in features]
        spread = sum(weight.variance * value * value for weight, value in used)
        late = log_ms - sum(weight.log_ms * value for weight, value in used)
        worse = (not completed) - sum(weight.failing * value for weight, value in used)
        for weight, value in used:
            share = weight.variance * value
            weight.log_ms += late * share / (spread + TIME_NOISE)
            weight.failing += worse * share / (spread + FAILURE_NOISE)
            weight.variance -= weight.variance * share * value / (spread + TIME_NOISE)

    def _of(self, key: tuple[str, str], log_ms: float, now_ms: int) -> _Learned:
        learned = self._learned.get(key)
        if learned is None:
            learned = _Learned(log_ms if key[1] == BASE else 0.0, 0.0, PRIOR_VARIANCE, now_ms)
            self._learned[key] = learned
            others = [key for key in self._learned if key[1] != BASE]  # an agent without a base counts as untried
            if len(others) > MOST_WEIGHTS:
                del self._learned[others[0]]
        else:
            self._learned.move_to_end(key)
        learned.age(now_ms)
        return learned


# The recent outcomes of an agent's attempts, by capability and size of input, which agents report to the registry.

FADING = 0.95
"""The weight that an attempt keeps when one more has ended; so all together weigh at most 1 / (1 - 0.95) = 20."""
HALF_LIFE_SECONDS = 10.0
"""The time after which an attempt counts half, so that an agent that recovers is soon judged by its new attempts."""
LARGE = 99
"""The kind of an input that is too large for a message: its body is a reference to a blob."""


@dataclass(frozen=True, slots=True)
class TaskKind:
    """The tasks of one capability whose inputs are of about one size."""

    capability: str
    size: int
    """The size class of the inputs: `size_class`, or `LARGE`."""
    features: Features = ()
    """The features of the input that the strategy `predictive` goes by; empty for any other strategy."""


@dataclass(frozen=True, slots=True)
class RecentOutcomes:
    """The results of an agent's recent attempts at one kind of task; an attempt counts ever less as it gets older."""

    kind: TaskKind
    attempts: float
    """The number of attempts, the older ones counted in part; never more than 20."""
    mean_ms: float
    """The mean run time of the attempts in milliseconds."""
    success: float
    """The share of the attempts that completed, in [0, 1]."""

    def faded(self, passed_seconds: float) -> RecentOutcomes:
        """Return the outcomes as they count `passed_seconds` later: the number of attempts halves every 10 s."""
        return replace(self, attempts=self.attempts * 0.5 ** (passed_seconds / HALF_LIFE_SECONDS))

    def after(self, ran_ms: float, *, completed: bool) -> RecentOutcomes:
        """Return the outcomes with one more attempt included; the older attempts then count a little less."""
        before = self.attempts * FADING
        attempts = before + 1
        mean_ms = (before * self.mean_ms + ran_ms) / attempts
        return RecentOutcomes(self.kind, attempts, mean_ms, (before * self.success + completed) / attempts)


def task_kind(capability: str, body_bytes: int | None) -> TaskKind:
    """Return the kind of a task, by capability and input size; a size of None means that the input is a blob reference.

    Inputs of one kind differ in size by less than four times, but for those in blobs, which are all of one kind.
    """
    return TaskKind(capability, LARGE if body_bytes is None else size_class(body_bytes))


def size_class(body_bytes: int) -> int:
    """Return the class of an input's size: 0 for an empty input, and one more with each factor of four in bytes."""
    return (body_bytes.bit_length() + 1) // 2


def input_sizes(kind: TaskKind) -> str:
    """Return the range of input sizes of a kind of task as text, such as `64 to 255 bytes`."""
    if kind.size == LARGE:
        return "inputs in blobs"
    return f"{4**kind.size // 4} to {4**kind.size - 1} bytes"


def unknown(kind: TaskKind) -> RecentOutcomes:
    """Return the outcomes of an agent that has not attempted a task of the kind: no attempts, a success share of 1."""
    return RecentOutcomes(kind, 0.0, 0.0, 1.0)
