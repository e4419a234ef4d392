"""The metrics of one process: the port by which its parts count and report, and its in-memory adapter.

A part takes its counters and histograms once, at its construction, and adds to them on the event loop of its process:
that costs what an attribute of its own would. A number that a part has anyway is observed: read whenever the metrics
are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Bucket bounds in seconds for steps inside of the fleet, such as a commit or a look-up."""
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Bucket bounds in seconds for work and waits, from milliseconds to half an hour."""


@dataclass(frozen=True, slots=True)
class Metric:
    """The declaration of a metric: name, meaning and labels, named by Prometheus' naming practices."""

    name: str
    meaning: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The possible values of each label, few in number; never the id of a task or an agent.

    No values stand for names that the fleet's own code declares, such as its capabilities.
    """
    buckets: tuple[float, ...] = ()
    """The upper bounds of a histogram's buckets, ascending; none for any other metric."""


@dataclass(slots=True)
class Counter:
    """The value of a counter metric, which only grows."""

    value: int = 0


class Histogram:
    """The distribution of a histogram metric's values over its buckets."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The number of values in each bucket, not added up; the last one is for values above all bounds."""
        self.total = 0.0
        """The sum of all values."""

    def record(self, value: float) -> None:
        """Add one value to the histogram; a call takes 0.2 µs."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def number(self) -> int:
        """Return how many values were recorded."""
        return sum(self.counts)

    def copy(self) -> Histogram:
        """Return a copy of the histogram, which values recorded later do not change."""
        one = Histogram(self.bounds)
        one.counts, one.total = self.counts.copy(), self.total
        return one


Labels: TypeAlias = tuple[tuple[str, str], ...]
"""The names and values of a time series' labels, sorted by name."""
Series: TypeAlias = tuple[str, Labels]
"""The key of one time series: a metric's name, and its labels."""
Value: TypeAlias = float | Histogram


class Metrics(Protocol):
    """The interface by which the parts of a process count, measure and report its metrics."""

    def counter(self, metric: Metric, **labels: str) -> Counter:
        """Return the counter of a metric with these labels; all callers in the process share it."""

    def histogram(self, metric: Metric, **labels: str) -> Histogram:
        """Return the histogram of a metric with these labels; all callers in the process share it."""

    def observe(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Register the function that returns the value of a metric with these labels, in place of an earlier one."""

    def observe_all(self, metric: Metric, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """Register the function that returns all of a metric's values by label values, in place of an earlier function.

        The keys are tuples of label values in the order in which the metric declares the labels.
        """


class MemoryMetrics:
    """The metrics of a process kept in memory, from which an exporter reads them."""

    def __init__(self) -> None:
        self.declared: dict[str, Metric] = {}
        """The declarations of all metrics that the process offers, by name."""
        self._counters: dict[Series, Counter] = {}
        self._histograms: dict[Series, Histogram] = {}
        self._observed: dict[Series, Callable[[], float]] = {}
        self._tables: dict[str, Callable[[], Mapping[tuple[str, ...], float]]] = {}

    def counter(self, metric: Metric, **labels: str) -> Counter:
        """Return the shared counter of a metric with these labels."""
        return self._counters.setdefault(self._series(metric, labels), Counter())

    def histogram(self, metric: Metric, **labels: str) -> Histogram:
        """Return the shared histogram of a metric with these labels."""
        series = self._series(metric, labels)
        found = self._histograms.get(series)
        if found is None:
            found = self._histograms[series] = Histogram(metric.buckets)
        return found

    def observe(self, metric: Metric, read: Callable[[], float], **labels: str) -> None:
        """Register the function that returns the value of a metric with these labels, in place of an earlier one."""
        self._observed[self._series(metric, labels)] = read

    def observe_all(self, metric: Metric, read: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """Register the function that returns all of a metric's values by label values, in place of an earlier function.

        The keys are tuples of label values in the order in which the metric declares the labels.
        """
        self.declared[metric.name] = metric
        self._tables[metric.name] = read

    def _series(self, metric: Metric, labels: Mapping[str, str]) -> Series:
        self.declared[metric.name] = metric
        return metric.name, tuple(sorted(labels.items()))

    def samples(self) -> dict[Series, Value]:
        """Return the present value of every metric series; to be called on the process's event loop."""
        counted: dict[Series, Value] = {series: counter.value for series, counter in self._counters.items()}
        counted.update({series: read() for series, read in self._observed.items()})
        counted.update({series: one.copy() for series, one in self._histograms.items()})
        for name, read_all in self._tables.items():
            labels = tuple(self.declared[name].labels)
            counted.update(
                {(name, tuple(sorted(zip(labels, values, strict=True)))): one for values, one in read_all().items()}
            )
        return counted
