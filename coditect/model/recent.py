"""The recent outcomes of an agent's attempts, by capability and size of input, which agents report to the registry."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
