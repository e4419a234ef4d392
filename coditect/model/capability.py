"""Names, priorities and descriptions of capabilities, and the strategies by which a sender selects an agent."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from coditect.errors import InputError
from coditect.model.limits import Rate


class Strategy(StrEnum):
    """A strategy by which a sender selects the agent that it prefers for a task."""

    ROUND_ROBIN = "round_robin"
    LEAST_BUSY = "least_busy"
    LOAD_BALANCED = "load_balanced"
    BEST_MATCH = "best_match"
    ADAPTIVE = "adaptive"
    PREDICTIVE = "predictive"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The tags, capabilities and keywords that the best matching agent should have; each entry counts equally.

    Raises:
        InputError: for a bare text where a set of texts is meant.
    """

    tags: Collection[str] = frozenset()
    """Tags that the agent, or one of its capabilities, should have."""
    capabilities: Collection[str] = frozenset()
    """Further capabilities that the agent should offer."""
    keywords: Collection[str] = frozenset()
    """Words that should occur, in any case, in the agent's name or tags, or in a capability's name, text or tags."""

    def __post_init__(self) -> None:
        for words in (self.tags, self.capabilities, self.keywords):
            if isinstance(words, str):
                raise InputError("What is wanted is a set of texts", given=words[:120], fix=f"write {{{words[:40]!r}}}")

    def __len__(self) -> int:
        return len(self.tags) + len(self.capabilities) + len(self.keywords)


ANYTHING = Wanted()
"""No criteria at all: every agent that offers the capability matches equally well."""


_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*(\.[a-z0-9][a-z0-9_-]*)*")
MAX_NAME_LENGTH = 100
"""The longest capability name, which leaves room for a queue's prefix and suffix in AMQP's 255 bytes."""
LONGEST_DIRECT_SECONDS = 25 * 60.0
"""Longest attempt of a direct task: RabbitMQ takes an unacknowledged delivery back after 30 minutes."""
LONG_SECONDS = 10 * 60.0
"""A capability with a longer timeout takes only workflow tasks, whose agent reports progress to the control plane."""
LONGEST_SECONDS = 7 * 24 * 3600.0
"""The longest timeout of an attempt that a capability may declare."""


class Priority(StrEnum):
    """The priority of a task: agents take P0, P1 and P2 8:4:1; by default one of two or more slots is kept for P0."""

    P0 = "p0"
    P1 = "p1"
    P2 = "p2"


def check_capability_name(name: str) -> str:
    """Check that a text is a capability name, lower-case words joined by dots, and return the name.

    Raises:
        InputError: when the text has over 100 characters, is no such name, or ends in a priority (`p0`, `p1`, `p2`).
    """
    if not isinstance(name, str):
        raise InputError("A capability is named by a text", given=type(name).__name__, fix='such as "code.review"')
    return _checked(name)


@lru_cache(maxsize=4096)
def _checked(name: str) -> str:
    if len(name) > MAX_NAME_LENGTH or _NAME.fullmatch(name) is None:
        raise InputError("A capability is lower-case words joined by dots, such as code.review", given=name[:120])
    if name.rpartition(".")[2] in {level.value for level in Priority}:
        raise InputError("A capability cannot end in a priority level", given=name)
    return name


def nearest_names(name: str, known: Iterable[str], *, limit: int = 3) -> tuple[str, ...]:
    """Return the known names that resemble the given one, at most `limit`, the most similar first."""
    return tuple(difflib.get_close_matches(name, sorted(set(known)), n=limit, cutoff=0.5))


@dataclass(frozen=True, slots=True)
class CapabilitySpec:
    """The description of one capability in the registry; JSON shape in ``docs/wire/registration.schema.json``."""

    name: str
    description: str = ""
    input_schema: Mapping[str, object] = field(default_factory=dict)
    """JSON Schema of the task's body."""
    output_schema: Mapping[str, object] = field(default_factory=dict)
    """JSON Schema of the result's body."""
    cost: float = 1.0
    """Estimated cost of one task, in a unit that the fleet agrees on."""
    tags: frozenset[str] = frozenset()
    timeout_seconds: float = 300.0
    """Longest run of one attempt."""
    strategy: Strategy | None = None
    """The strategy by which a sender picks an agent, unless the call names one; None lets the broker balance."""

    max_queued: int | None = None
    """The number of waiting tasks from which the broker refuses more of P2, and of P1 at twice as many; None: never."""
    rate: Rate | None = None
    """The bound on how often executions begin in the whole fleet; None: no bound."""
    features: tuple[str, ...] = ()
    """The fields of the input by which `predictive` expects run time and success, such as `options.depth`."""

    @property
    def long(self) -> bool:
        """Tell whether one attempt may take over 10 minutes, so that the capability takes only workflow tasks."""
        return self.timeout_seconds > LONG_SECONDS
