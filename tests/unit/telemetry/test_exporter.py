"""What the exporter writes is what Prometheus' own parser reads, with every value where it belongs."""

from __future__ import annotations

import re
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from coditect.errors import SetupError, install_command
from coditect.telemetry.metrics import MemoryMetrics, Metric, exposition

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
