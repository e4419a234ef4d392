"""The metrics of one process: the port by which its parts count and report, and its in-memory adapter.

A part takes its counters once, at its construction, and adds to their values on the event loop of its process: that
costs what an attribute of its own would. A number that a part has anyway is observed: read whenever the metrics are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Metric:
    """The declaration of a metric: name, meaning and labels, named by Prometheus' naming practices."""

    name: str
    meaning: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The possible values of each label, few in number; never the id of a task or an agent."""


@dataclass(slots=True)
class Counter:
    """The value of a counter metric, which only grows."""

    value: int = 0


Series: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]
"""The key of one time series: a metric's name, and the names and values of its labels."""


class Metrics(Protocol):
    """The port to which the parts of a process report their metrics."""

    def counter(self, metric: Metric, **labels: str) -> Counter:
        """Return the counter of a metric with these labels; all callers in the process share it."""

    def observe(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Register a function that returns the metric's present value, in place of an earlier function."""


class MemoryMetrics:
    """The metrics of a process kept in memory, from which an exporter reads them."""

    def __init__(self) -> None:
        self._counters: dict[Series, Counter] = {}
        self._observed: dict[Series, Callable[[], float]] = {}

    def counter(self, metric: Metric, **labels: str) -> Counter:
        """Return the shared counter of a metric with these labels."""
        return self._counters.setdefault((metric.name, tuple(sorted(labels.items()))), Counter())

    def observe(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Register a function that returns the metric's present value, in place of an earlier function."""
        self._observed[metric.name, tuple(sorted(labels.items()))] = read

    def samples(self) -> dict[Series, float]:
        """Return the present value of every metric series; to be called on the process's event loop."""
        counted = {series: counter.value for series, counter in self._counters.items()}
        return counted | {series: read() for series, read in self._observed.items()}
