"""The metrics of one process: a port that is passed like the clock, and the numbers in memory behind it.

A part takes its counters once, at its construction, and adds to their values on the event loop of its process: that
costs what an attribute of its own would. A number that a part has anyway is observed: read whenever the metrics are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that programs offer, named as https://prometheus.io/docs/practices/naming advises."""

    name: str
    meaning: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The few values of each label; never the id of a task or an agent."""


@dataclass(slots=True)
class Counter:
    """A number that only grows."""

    value: int = 0


Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name, and the name and value of each label."""


class Metrics(Protocol):
    """The port to which the parts of a process give their numbers."""

    def counter(self, metric: Metric, **labels: str) -> Counter:
        """Return the counter with these labels, the same one for every part of the process."""

    def observe(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Have the number with these labels read by `read`, which replaces an earlier one."""


class MemoryMetrics:
    """The metrics that are kept in memory, where an exporter finds them."""

    def __init__(self) -> None:
        self._counters: dict[Series, Counter] = {}
        self._observed: dict[Series, Callable[[], float]] = {}

    def counter(self, metric: Metric, **labels: str) -> Counter:
        """Return the counter with these labels, as `Metrics.counter`."""
        return self._counters.setdefault((metric.name, tuple(sorted(labels.items()))), Counter())

    def observe(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Have the number read by `read`, as `Metrics.observe`."""
        self._observed[metric.name, tuple(sorted(labels.items()))] = read

    def samples(self) -> dict[Series, float]:
        """Return the present value of every number; call it on the event loop of the process."""
        counted = {series: counter.value for series, counter in self._counters.items()}
        return counted | {series: read() for series, read in self._observed.items()}
