"""The metrics of one process: the port by which its parts count and report, and its in-memory adapter.

A part takes its counters and histograms once, at its construction, and adds to them on the event loop of its process:
that costs what an attribute of its own would. A number that a part has anyway is observed: read whenever the metrics
are.

The metrics of all programs are declared here, the same as in the table in `docs/operations.md`.

Prometheus' text format is written by `prometheus-client`, which is imported at the first scrape: a process that is
never scraped does not pay for it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counted
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from coditect.errors import missing_extra

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

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
    most_values: int = 0
    """The most values of a label without declared values, since users make them up; 0 for no bound.

    `other` stands for any further value, and for one that was used fewer than `USES` times: names that are made for one
    use each take no place.
    """


@dataclass(slots=True)
class Counter:
    """The value of a counter metric, which only grows."""

    value: int = 0


class Histogram:
    """The distribution of a histogram metric's values over its buckets."""

    __slots__ = ("bounds", "counts", "highest", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """The number of values in each bucket, not added up; the last one is for values above all bounds."""
        self.total = 0.0
        """The sum of all values."""
        self.highest = 0.0
        """The highest value, not rounded to a bucket."""

    def record(self, value: float) -> None:
        """Add one value to the histogram; a call takes 0.2 µs."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
        self.highest = max(self.highest, value)

    def number(self) -> int:
        """Return how many values were recorded."""
        return sum(self.counts)

    def quantile(self, share: float) -> float:
        """Return the value that a share (0 to 1) of all values does not exceed, interpolated as Prometheus does.

        A value above all bounds counts as the highest bound; an empty histogram gives 0.
        """
        wanted, below, low = share * self.number(), 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= wanted:
                return low + (bound - low) * (wanted - below) / count
            below, low = below + count, bound
        return low if below < self.number() else 0.0

    def copy(self) -> Histogram:
        """Return a copy of the histogram, which values recorded later do not change."""
        copied = Histogram(self.bounds)
        copied.counts, copied.total, copied.highest = self.counts.copy(), self.total, self.highest
        return copied


OTHER = "other"
USES = 3
"""The use from which a value of a bounded label has a time series of its own."""
MOST_COUNTED = 1_000
"""The most values of a bounded label whose uses are counted."""

Labels: TypeAlias = tuple[tuple[str, str], ...]
"""The names and values of a time series' labels, sorted by name."""
Series: TypeAlias = tuple[str, Labels]
"""The key of one time series: a metric's name, and its labels."""
Value: TypeAlias = float | Histogram
JsonTotal: TypeAlias = int | dict[str, list[float]]
"""A counter's value, or a histogram's `bounds` and `counts`, as JSON."""


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

    def totals(self, names: Iterable[str]) -> dict[str, JsonTotal]:
        """Return the named counters' sums and histograms' counts over all their labels, by name, for a JSON message.

        A metric that the process does not have is missing.
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
        self._values: dict[tuple[str, str], set[str]] = {}
        """The values of each bounded label, by metric and label."""
        self._uses: dict[tuple[str, str], Counted[str]] = {}
        """The uses of further values, by metric and label."""

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

    def totals(self, names: Iterable[str]) -> dict[str, JsonTotal]:
        """Return the named counters' sums and histograms' counts over all their labels, by name."""
        totals: dict[str, JsonTotal] = {}
        for name in self.declared.keys() & set(names):
            counters = [counter.value for series, counter in self._counters.items() if series[0] == name]
            counts = [histogram.counts for series, histogram in self._histograms.items() if series[0] == name]
            if counts:
                bounds = [*self.declared[name].buckets]
                totals[name] = {"bounds": bounds, "counts": [sum(column) for column in zip(*counts, strict=True)]}
            elif counters:
                totals[name] = sum(counters)
        return totals

    def _series(self, metric: Metric, labels: Mapping[str, str]) -> Series:
        self.declared[metric.name] = metric
        if metric.most_values:
            labels = {label: self._bounded(metric, label, value) for label, value in labels.items()}
        return metric.name, tuple(sorted(labels.items()))

    def _bounded(self, metric: Metric, label: str, value: str) -> str:
        known = self._values.setdefault((metric.name, label), set())
        if value in known:
            return value
        if value == OTHER or len(known) >= metric.most_values:
            return OTHER
        uses = self._uses.setdefault((metric.name, label), Counted())
        uses[value] += 1
        if uses[value] < USES:
            if len(uses) > MOST_COUNTED:
                uses.clear()
            return OTHER
        known.add(value)
        return value

    def samples(self) -> dict[Series, Value]:
        """Return the present value of every metric series; to be called on the process's event loop."""
        counted: dict[Series, Value] = {series: counter.value for series, counter in self._counters.items()}
        counted.update({series: read() for series, read in self._observed.items()})
        counted.update({series: histogram.copy() for series, histogram in self._histograms.items()})
        for name, read_all in self._tables.items():
            labels = tuple(self.declared[name].labels)
            counted.update(
                {(name, tuple(sorted(zip(labels, values, strict=True)))): value for values, value in read_all().items()}
            )
        return counted


ATTEMPTS = Metric(
    "coditect_task_attempts_total", "attempts of tasks that ended in the agent", {"outcome": ("completed", "failed")}
)
EVENTS_DROPPED = Metric("coditect_events_dropped_total", "events that were not sent: too many at once, or no broker")
LOOP_RESTARTS = Metric("coditect_loop_restarts_total", "endless loops that died and were started again")
REPLIES_STRAY = Metric("coditect_replies_stray_total", "replies that no caller waits for: late, forged or a second one")
REPLIES_UNCLAIMED = Metric("coditect_replies_unclaimed_total", "replies that were dropped without a receiver")

COMMITS_REFUSED = Metric("coditect_commits_refused_total", "commits to a shard that was another dispatcher's by then")
RESULTS_REFUSED = Metric(
    "coditect_results_refused_total",
    "results of attempts that the ledger did not take",
    {"reason": ("late", "unknown", "unrecorded")},
)
UNDELIVERABLE = Metric(
    "coditect_undeliverable_tasks_total",
    "tasks that no agent ran, by what became of the answer",
    {"outcome": ("answered", "dropped", "failed", "ignored", "unclaimed")},
)
TRIGGER_EVENTS = Metric(
    "coditect_trigger_events_total", "events that came to triggers", {"outcome": ("taken", "unreadable")}
)
HTTP_AGENT_ATTEMPTS = Metric(
    "coditect_http_agent_attempts_total",
    "posts of tasks to HTTP agents",
    {"outcome": ("abandoned", "answered", "broken", "lost", "refused", "unreachable")},
)
WEBHOOK_ATTEMPTS = Metric(
    "coditect_webhook_attempts_total", "posts of events to webhooks, tests among them", {"outcome": ("failed", "taken")}
)
WEBHOOK_SECONDS = Metric(
    "coditect_webhook_attempt_duration_seconds", "durations of posts to webhooks, in seconds", buckets=LONG
)
WEBHOOKS_DISABLED = Metric("coditect_webhooks_disabled_total", "webhooks that were disabled because they took nothing")
AGENTS_LOST = Metric("coditect_agents_lost_total", "agents that died, hung or were cut off")
RECOVERY_SECONDS = Metric(
    "coditect_agent_recovery_seconds",
    "times from the last sign of life of lost agents until the workflow tasks that they ran were with others",
    buckets=LONG,
)
LOCKS_FREED_SECONDS = Metric(
    "coditect_agent_locks_freed_seconds",
    "times from the last sign of life of lost agents until their locks were released",
    buckets=LONG,
)
CONNECTIONS_EVICTED = Metric(
    "coditect_connections_evicted_total", "connections of agents that were closed at the broker"
)
JOBS_MENDED = Metric("coditect_jobs_mended_total", "jobs in RQ that differed from the ledger")

TASK_REQUESTS = Metric("coditect_agent_requests_total", "attempts of tasks that agents ran", {"capability": ()})
TASK_SECONDS = Metric(
    "coditect_agent_request_duration_seconds", "run times of attempts, in seconds", {"capability": ()}, LONG
)
TASK_ERRORS = Metric(
    "coditect_agent_request_errors_total", "attempts that failed, were rejected or canceled", {"capability": ()}
)
TASK_TIMEOUTS = Metric(
    "coditect_agent_request_timeouts_total", "attempts that ran longer than they may", {"capability": ()}
)
QUEUE_WAIT = Metric(
    "coditect_task_queue_wait_seconds", "waits of tasks from their publication to their start", {"capability": ()}, LONG
)
SLOTS = Metric(
    "coditect_agent_slots", "slots of an agent, and tasks that it suspended", {"state": ("busy", "free", "suspended")}
)
HEARTBEAT_LAG = Metric("coditect_heartbeat_lag_seconds", "seconds by which the next heartbeat is overdue")
BREAKER_STATE = Metric(
    "coditect_circuit_breaker_state", "1 for the state in which a breaker is", {"name": (), "state": ("closed", "open")}
)
CLOCK_SKEW = Metric("coditect_clock_skew_seconds", "seconds by which the machine's clock is ahead of the registry's")
LOOP_LAG = Metric("coditect_event_loop_lag_seconds", "delays of a timer on the event loop", buckets=QUICK)
BUILD_INFO = Metric("coditect_build_info", "1, with the versions of Coditect and Python", {"python": (), "version": ()})
CERTIFICATE_END = Metric(
    "coditect_certificate_end_timestamp_seconds", "end of a server's TLS certificate, as a Unix time", {"server": ()}
)

BROKER_UP = Metric("coditect_broker_up", "1 while the connection to the broker and every consumer are there, else 0")
REGISTRY_UP = Metric("coditect_registry_up", "1 if the registry answered the latest look-up, else 0")

LOCKS_ACTIVE = Metric("coditect_locks_active", "locks that the process holds")
LOCKS_WAITING = Metric("coditect_locks_waiting", "locks for which the process waits")
LOCK_LONGEST = Metric("coditect_lock_longest_wait_seconds", "seconds since the longest present wait for a lock began")
LOCK_WAIT = Metric("coditect_lock_wait_seconds", "waits for locks that were granted", buckets=LONG)
LOCK_CONTENTIONS = Metric("coditect_lock_contentions_total", "requests for a lock that others had")
LOCK_TIMEOUTS = Metric("coditect_lock_timeouts_total", "waits for a lock that ended without it")
LOOKUPS = Metric("coditect_registry_lookups_total", "look-ups in the registry", {"outcome": ("answered", "failed")})
LOOKUP_SECONDS = Metric("coditect_registry_lookup_seconds", "durations of look-ups in the registry", buckets=QUICK)

WORKFLOWS_ACTIVE = Metric("coditect_workflows_active", "workflows with a task that is published or runs")
WORKFLOWS_ACCEPTED = Metric("coditect_workflows_accepted_total", "workflows that were accepted, children among them")
WORKFLOW_SECONDS = Metric(
    "coditect_workflow_duration_seconds",
    "times from the acceptance of workflows to their end",
    {"state": ("canceled", "compensated", "compensation_failed", "completed", "failed", "rejected")},
    LONG,
)
WORKFLOW_NAMED_SECONDS = Metric(
    "coditect_workflow_named_duration_seconds",
    "durations of workflows by name: 50 names that have ended three times, and `other`",
    {"workflow": ()},
    LONG,
    most_values=50,
)
NODE_SECONDS = Metric(
    "coditect_workflow_node_duration_seconds",
    "times from when nodes' last attempts might run, or began to wait, to their end: 100 names, and `other`",
    {"node": ()},
    (1.0, 10.0, 60.0, 600.0),
    most_values=100,
)
CHECKPOINTS = Metric("coditect_checkpoints_total", "named checkpoints of workflows", {"action": ("made", "restored")})
WORKFLOW_STEPS = Metric(
    "coditect_workflow_steps_total",
    "nodes of workflows that ended",
    {"state": ("canceled", "completed", "dead", "failed", "rejected", "skipped")},
)
WORKFLOW_FAILURES = Metric(
    "coditect_workflow_failures_total", "workflows that failed, were rejected, or could not be compensated"
)
SCHEDULE_LATENESS = Metric("coditect_schedule_lateness_seconds", "delays of schedules' ticks", buckets=LONG)
STORE_COMMIT_SECONDS = Metric("coditect_store_commit_seconds", "durations of the ledger's transactions", buckets=QUICK)
STORE_BYTES = Metric("coditect_store_bytes", "size of the ledger's SQLite file with its write-ahead log")
SHARDS = Metric("coditect_shards", "shards of the ledger")
SHARDS_OWNED = Metric("coditect_shards_owned", "shards that the dispatcher works for")
REGISTRY_SIZE = Metric("coditect_registry_size", "living agents in the registry")
CAPABILITY_AGENTS = Metric("coditect_capability_agents", "living agents that offer a capability", {"capability": ()})
_LEVEL = {"capability": (), "priority": ("p0", "p1", "p2")}
QUEUE_DEPTH = Metric("coditect_queue_depth", "tasks that wait in a queue", _LEVEL)
QUEUE_OLDEST = Metric(
    "coditect_queue_oldest_age_seconds",
    "seconds since the queue was empty: no task in it is older",
    _LEVEL,
)
QUEUE_CONSUMERS = Metric(
    "coditect_queue_consumers", "consumers of a queue: none of an agent without a free slot", _LEVEL
)
DEAD_LETTERS = Metric("coditect_dead_letters", "dead letters of a capability", {"capability": ()})


def exposition(declared: Mapping[str, Metric], samples: Mapping[Series, Value]) -> tuple[bytes, str]:
    """Return metric values, and the process's figures such as CPU and memory, as Prometheus' text, and its type.

    Raises:
        SetupError: when the extra `metrics` is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, exposition, process_collector  # noqa: PLC0415 - optional
    except ImportError as error:
        raise missing_extra("metrics") from error
    registry = CollectorRegistry()
    registry.register(_Samples(declared, samples))
    process_collector.ProcessCollector(registry=registry)
    return exposition.generate_latest(registry), exposition.CONTENT_TYPE_LATEST


class _Samples:
    """A collector of `prometheus-client` that gives out samples which were read before."""

    def __init__(self, declared: Mapping[str, Metric], samples: Mapping[Series, Value]) -> None:
        self._declared = declared
        self._samples = samples

    def collect(self) -> Iterator[Family]:
        """Yield every metric with its time series."""
        rows: dict[str, list[tuple[Labels, Value]]] = {}
        for (name, labels), value in self._samples.items():
            rows.setdefault(name, []).append((labels, value))
        for name, found in rows.items():
            yield _family(self._declared[name], found)


def _family(metric: Metric, rows: list[tuple[Labels, Value]]) -> Family:
    from prometheus_client import core  # noqa: PLC0415 - optional, and here it is installed

    labels = sorted(metric.labels)
    kind: Any = core.GaugeMetricFamily
    if metric.buckets:
        kind = core.HistogramMetricFamily
    elif metric.name.endswith("_total"):
        kind = core.CounterMetricFamily
    family = kind(metric.name, metric.meaning, labels=labels)
    for named, value in rows:
        values = [value for _, value in named]
        if isinstance(value, Histogram):
            counts = zip([*map(str, value.bounds), "+Inf"], accumulate(value.counts), strict=True)
            family.add_metric(values, buckets=[*counts], sum_value=value.total)
        else:
            family.add_metric(values, value)
    return family  # type: ignore[no-any-return] # of the library's types, none is generic over its value
