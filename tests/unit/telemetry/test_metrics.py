from __future__ import annotations

from coditect.telemetry.metrics import MemoryMetrics, Metric

PLAIN = Metric("coditect_things_total", "things")
LABELED = Metric("coditect_boxes", "boxes", {"state": ("empty", "full")})


def test_parts_of_a_process_share_a_counter() -> None:
    metrics = MemoryMetrics()
    first, second = metrics.counter(PLAIN), metrics.counter(PLAIN)

    first.value += 1
    second.value += 2

    assert metrics.samples() == {("coditect_things_total", ()): 3}


def test_a_number_that_a_part_has_is_read_when_the_metrics_are() -> None:
    metrics, boxes = MemoryMetrics(), ["one"]
    metrics.observe(LABELED, lambda: len(boxes), state="full")

    boxes.append("two")

    assert metrics.samples() == {("coditect_boxes", (("state", "full"),)): 2}
