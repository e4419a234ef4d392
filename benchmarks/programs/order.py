"""The instructions for a client: written by the part, read by the program."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from benchmarks.programs.driver import BODY_BYTES


class Mode(StrEnum):
    """The kind of a measurement: a burst, single round trips, tasks without results, or a backlog."""

    BURST = "burst"
    """`count` tasks at once, each with its result."""
    SINGLE = "single"
    """`count` round trips, one at a time."""
    FORGET = "forget"
    """`count` tasks at once without results, until the agent has executed them."""
    FILL = "fill"
    """`count` tasks at once without results, until the broker has them."""


@dataclass(frozen=True, slots=True)
class Order:
    """The instructions to a client for one measurement: mode, number of tasks, bodies and capabilities."""

    mode: Mode
    warm_up: int
    """The number of tasks before the measurement that do not count."""
    count: int
    body_bytes: int = BODY_BYTES
    capabilities: int = 1
    driver: str = ""
    """The module of the side's driver."""
    watched: Mapping[str, int] = field(default_factory=dict)
    """The process ids, by name, of the processes whose processor time is measured, too."""
    tally: str = ""
    """The folder in which agents count the executed tasks."""

    def written(self) -> str:
        """Return the order as JSON text, for a client's command line."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Self:
        """Read an order from the JSON text of `written`."""
        fields = json.loads(text)
        return cls(**{**fields, "mode": Mode(fields["mode"])})
