"""The exporter: the metrics of a process in Prometheus' text format, written by `prometheus-client`.

The library is imported at the first scrape, so that a process that is never scraped does not pay for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from coditect.errors import SetupError
from coditect.telemetry.metrics import Histogram, Labels, Metric, Series, Value

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

FIX = "pip install 'coditect[metrics]'"


def exposition(declared: Mapping[str, Metric], samples: Mapping[Series, Value]) -> tuple[bytes, str]:
    """Return metric values, and the process's figures such as CPU and memory, as Prometheus' text, and its type.

    Raises:
        SetupError: when the extra `metrics` is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, exposition, process_collector  # noqa: PLC0415 - optional
    except ImportError as error:
        raise SetupError("Metrics need a library that is not installed", fix=FIX) from error
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
        values = [one for _, one in named]
        if isinstance(value, Histogram):
            counts = zip([*map(str, value.bounds), "+Inf"], accumulate(value.counts), strict=True)
            family.add_metric(values, buckets=[*counts], sum_value=value.total)
        else:
            family.add_metric(values, value)
    return family  # type: ignore[no-any-return] # of the library's types, none is generic over its value
