"""Metrics: counters, histograms and labels, and the exposition that Prometheus reads."""

from __future__ import annotations

import re
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coditect.errors import RegistryUnavailable, SetupError, install_command
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Lookups, Search
from coditect.telemetry.metrics import MOST_COUNTED, Histogram, MemoryMetrics, Metric, exposition

PLAIN = Metric("coditect_things_total", "things")
LABELED = Metric("coditect_boxes", "boxes", {"state": ("empty", "full")})


def test_parts_of_a_process_share_a_counter_and_numbers_are_read_when_the_metrics_are() -> None:
    metrics = MemoryMetrics()
    first, second = metrics.counter(PLAIN), metrics.counter(PLAIN)

    first.value += 1
    second.value += 2

    assert metrics.samples() == {("coditect_things_total", ()): 3}

    metrics, boxes = MemoryMetrics(), ["one"]
    metrics.observe(LABELED, lambda: len(boxes), state="full")

    boxes.append("two")

    assert metrics.samples() == {("coditect_boxes", (("state", "full"),)): 2}


def test_totals_add_up_the_labels_of_the_named_metrics_alone() -> None:
    metrics = MemoryMetrics()
    waits = Metric("coditect_waits_seconds", "waits", {"kind": ()}, (1.0, 2.0))
    for kind, value in (("a", 0.5), ("b", 0.6), ("b", 9.0)):
        metrics.histogram(waits, kind=kind).record(value)
    metrics.counter(PLAIN).value = 3
    metrics.counter(LABELED, state="full").value = 4

    assert metrics.totals([waits.name, PLAIN.name, "coditect_unknown"]) == {
        waits.name: {"bounds": [1.0, 2.0], "counts": [2, 0, 1]},
        PLAIN.name: 3,
    }


@pytest.mark.parametrize(
    ("values", "share", "quantile"),
    [((), 0.5, 0.0), ((0.5, 0.7), 0.5, 0.5), ((0.5, 1.5), 1.0, 2.0), ((0.5, 1.5), 0.75, 1.5), ((9.0,), 0.5, 2.0)],
)
def test_a_quantile_is_interpolated_within_its_bucket(values: tuple[float, ...], share: float, quantile: float) -> None:
    histogram = Histogram((1.0, 2.0))
    for value in values:
        histogram.record(value)

    assert histogram.quantile(share) == quantile


def test_a_label_that_users_make_up_has_few_values_and_none_for_names_that_are_used_once() -> None:
    metrics, named = MemoryMetrics(), Metric("coditect_runs_total", "runs", {"workflow": ()}, most_values=2)

    for name in ("a", "other", "b", "c", "a", "d"):
        for _ in range(3):
            metrics.counter(named, workflow=name).value += 1

    counted = {labels[0][1]: value for (_, labels), value in metrics.samples().items()}
    assert counted == {"a": 4, "b": 1, "other": 13}

    metrics, named = MemoryMetrics(), Metric("coditect_runs_total", "runs", {"workflow": ()}, most_values=2)

    for name in (*(f"throw-away-{number}" for number in range(MOST_COUNTED + 10)), "nightly", "nightly", "nightly"):
        metrics.counter(named, workflow=name).value += 1

    assert {labels for _, labels in metrics.samples()} == {(("workflow", "nightly"),), (("workflow", "other"),)}


async def test_the_registry_is_neither_up_nor_down_before_the_first_look_up() -> None:
    metrics, registry = MemoryMetrics(), MemoryRegistry()
    lookups = Lookups(metrics)
    up = ("coditect_registry_up", ())
    assert up not in metrics.samples()

    await lookups.measured(registry.find(Search()))
    assert metrics.samples()[up] == 1
    registry.failing = True
    with pytest.raises(RegistryUnavailable):
        await lookups.measured(registry.find(Search()))
    assert metrics.samples()[up] == 0


def test_a_histogram_knows_its_highest_value_exactly() -> None:
    histogram = Histogram((30.0, 60.0))
    for value in (31.0, 42.5, 2.0):
        histogram.record(value)

    assert histogram.copy().highest == 42.5


THINGS = Metric("coditect_things_total", "things", {"kind": ("big", "small")})
DEPTH = Metric("coditect_depth", "a depth", {"queue": (), "level": ("p0", "p1")})
WAIT = Metric("coditect_wait_seconds", 'waits, with a "quote"', buckets=(0.1, 1.0))


def read(metrics: MemoryMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text, kind = exposition(metrics.declared, metrics.samples())
    assert kind.startswith("text/plain")
    families = text_string_to_metric_families(text.decode())
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def test_every_value_is_where_it_belongs_and_as_it_was_read() -> None:
    metrics = MemoryMetrics()
    metrics.counter(THINGS, kind="big").value += 3
    metrics.observe_all(DEPTH, lambda: {('odd"name', "p1"): 7})

    told = read(metrics)

    assert told["coditect_things_total", (("kind", "big"),)] == 3
    assert told["coditect_depth", (("level", "p1"), ("queue", 'odd"name'))] == 7
    assert told["process_resident_memory_bytes", ()] > 1e6

    metrics = MemoryMetrics()
    wait = metrics.histogram(WAIT)
    for seconds in (0.05, 0.1, 0.5, 20.0):
        wait.record(seconds)

    told = read(metrics)

    assert [told["coditect_wait_seconds_bucket", (("le", le),)] for le in ("0.1", "1.0", "+Inf")] == [2, 3, 4]
    assert told["coditect_wait_seconds_count", ()] == 4
    assert told["coditect_wait_seconds_sum", ()] == pytest.approx(20.65)

    metrics = MemoryMetrics()
    wait = metrics.histogram(WAIT)
    samples = metrics.samples()

    wait.record(0.5)

    assert b"coditect_wait_seconds_count 0.0" in exposition(metrics.declared, samples)[0]


def test_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with pytest.raises(SetupError, match=re.escape(install_command("metrics"))):
        exposition({}, {})
