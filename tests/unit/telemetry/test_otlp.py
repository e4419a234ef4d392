"""What a process's settings make of tracing: spans by OTLP over HTTP, samplers, and collectors that are not there."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from coditect.errors import SetupError
from coditect.settings.settings import Settings, read_settings
from coditect.telemetry.tracing import choose
from coditect.telemetry.tracing.choose import open_tracing
from coditect.telemetry.tracing.otlp import CLOSE_SECONDS, Quiet
from coditect.telemetry.tracing.port import NO_TRACING, SKIPPED, SpanKind, TraceHeaders, read_traceparent
from tests.unit.telemetry.otlp_stub import OtlpStub, collecting

ON = Settings(tracing="otlp")
DEPLOY = Path(__file__).parents[3] / "deploy" / "observability"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpStub]:
    with collecting() as stub:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", stub.endpoint)
        yield stub


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port at which nobody listens: taken, and never listened at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        yield port


async def test_spans_arrive_at_a_collector_with_what_the_process_is_called(stub: OtlpStub) -> None:
    async with open_tracing(ON, service="coditect-agent", instance="agent-1") as tracing:
        outer = tracing.begin("publish coditect.submit:a.b.p1", SpanKind.PRODUCER)
        assert outer is not None
        inner = tracing.begin("process", SpanKind.CONSUMER, outer)
        assert inner is not None
        inner.attributes = {"coditect.attempt": 2, "coditect.redelivered": True}
        inner.link(outer.traceparent)
        inner.end("OSError", "no such file")
        outer.end()

    spans = {span.name: span for span in stub.spans()}
    process, publish = spans["process"], spans["publish coditect.submit:a.b.p1"]
    assert stub.services() == {"coditect-agent"}
    assert process.trace_id == publish.trace_id == outer.trace_id.to_bytes(16)
    assert process.parent_span_id == publish.span_id
    assert [link.span_id for link in process.links] == [publish.span_id]
    assert (process.status.code, process.status.message) == (process.status.STATUS_CODE_ERROR, "no such file")
    assert {pair.key for pair in process.attributes} == {
        "coditect.attempt",
        "coditect.redelivered",
        "error.type",
    }
    assert 0 < publish.start_time_unix_nano <= process.start_time_unix_nano <= process.end_time_unix_nano


async def test_service_name_of_the_environment_has_precedence(stub: OtlpStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reviewers")
    async with open_tracing(ON, service="coditect-agent", instance="agent-1") as tracing:
        span = tracing.begin("one", SpanKind.INTERNAL)
        assert span is not None
        span.end()

    assert stub.services() == {"reviewers"}


@pytest.mark.parametrize(
    ("sampler", "argument", "kept"),
    [("always_off", "", 0), ("traceidratio", "0", 0), ("parentbased_traceidratio", "1", 200), ("always_on", "", 200)],
)
async def test_head_sampling_is_that_of_the_standard_variables(
    sampler: str, argument: str, kept: int, stub: OtlpStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    async with open_tracing(ON, service="s", instance="i") as tracing:
        spans = [tracing.begin("one", SpanKind.INTERNAL) for _ in range(200)]
        for span in spans:
            assert span is not None
            span.end()

    assert len(stub.spans()) == kept


async def test_new_traces_are_kept_up_to_a_rate_and_what_goes_on_always(stub: OtlpStub) -> None:
    settings = Settings(tracing="otlp", traces_per_second=5)
    sampled, unsampled = (TraceHeaders(f"00-{7:032x}-{9:016x}-{flag}") for flag in ("01", "00"))
    async with open_tracing(settings, service="s", instance="i") as tracing:
        new = [tracing.begin("new", SpanKind.PRODUCER) for _ in range(1_000)]
        known = [tracing.begin("known", SpanKind.CONSUMER, sampled) for _ in range(20)]
        dropped = tracing.begin("dropped", SpanKind.CONSUMER, unsampled)

    assert 5 <= sum(one is not None and one.sampled for one in new) <= 6
    assert all(one is not None and one.sampled for one in known)
    assert dropped is not None
    assert (dropped.sampled, dropped.traceparent[-3:], dropped.trace_id) == (False, "-00", 7)


async def test_collector_that_is_not_there_costs_no_caller_any_time(
    closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_tracing(ON, service="s", instance="i") as tracing:
        parent = TraceHeaders(f"00-{7:032x}-{9:016x}-01")
        begun = time.perf_counter()
        for _ in range(10_000):  # many times what the queue holds
            span = tracing.begin("one", SpanKind.CONSUMER, parent)
            assert span is not None
            span.end()
        took = time.perf_counter() - begun
        closing = time.perf_counter()
    closed = time.perf_counter() - closing

    assert took < 5  # 0.2 s on an idle machine; a call that waited for one export alone takes ten
    assert closed < CLOSE_SECONDS + 3
    assert sum(record.name.startswith("opentelemetry") for record in caplog.records) <= 1


async def test_loop_goes_on_while_the_last_spans_are_sent_to_nobody(closed_port: int) -> None:
    tracing = open_tracing(ON, service="s", instance="i")
    span = tracing.begin("one", SpanKind.INTERNAL)
    assert span is not None
    span.end()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    await tracing.__aexit__(None, None, None)
    ticking.cancel()

    assert ticks > 0


def test_collector_that_is_not_there_is_one_log_line_a_minute() -> None:
    quiet = Quiet()
    record = logging.LogRecord("opentelemetry.exporter", logging.ERROR, __file__, 1, "no collector", None, None)

    assert [quiet.filter(record) for _ in range(5)] == [True, False, False, False, False]


def test_tracing_is_off_by_default_and_by_opentelemetrys_own_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_tracing(Settings(), service="s", instance="i") is NO_TRACING
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert open_tracing(ON, service="s", instance="i") is NO_TRACING


def test_missing_extra_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coditect.telemetry.tracing.otlp", None)

    with pytest.raises(SetupError, match=r"coditect\[telemetry\]"):
        choose.open_tracing(ON, service="s", instance="i")


@pytest.mark.parametrize("value", ["jaeger", "true"])
def test_other_value_of_the_setting_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="CODITECT_TRACING"):
        read_settings({"CODITECT_TRACING": value}, folder=tmp_path)


def test_programs_import_the_adapter_only_where_tracing_is_on() -> None:
    """redis-py imports OpenTelemetry by itself where it is installed."""
    code = (
        "import sys, coditect.agent.program, coditect.client.program, dispatcher.program;"
        "print([name for name in sys.modules if name in ('coditect.telemetry.tracing.otlp', 'google.protobuf')])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.strip() == "[]"


def test_tail_rule_of_the_collector_keeps_every_failure() -> None:
    config = yaml.safe_load((DEPLOY / "collector-tail.yaml").read_text())
    sampling = config["processors"]["tail_sampling"]
    policies = {policy["name"]: policy for policy in sampling["policies"]}

    assert config["service"]["pipelines"]["traces"]["processors"] == ["memory_limiter", "tail_sampling", "batch"]
    assert policies["failures"] == {
        "name": "failures",
        "type": "status_code",
        "status_code": {"status_codes": ["ERROR"]},
    }
    assert policies["slow"]["latency"]["threshold_ms"] == 10_000
    assert policies["one-in-ten"]["probabilistic"]["sampling_percentage"] == 10
    assert {policy["type"] for policy in policies.values()} == {"status_code", "latency", "probabilistic"}


async def test_trace_that_is_not_kept_is_one_span_for_all_and_what_comes_from_it_is_not_sampled(stub: OtlpStub) -> None:
    settings = Settings(tracing="otlp", traces_per_second=0.001)
    async with open_tracing(settings, service="s", instance="i") as tracing:
        spans = [tracing.begin("new", SpanKind.PRODUCER) for _ in range(1_001)]
        inner = tracing.begin("inner", SpanKind.CONSUMER, SKIPPED)

    assert spans.count(SKIPPED) == 1_000
    told = [read_traceparent(SKIPPED.traceparent) for _ in range(1_000)]
    assert len({one.trace_id for one in told if one is not None and not one.sampled}) == 1_000
    assert inner is not None
    assert (inner.sampled, inner.traceparent[-3:]) == (False, "-00")
    assert len(stub.spans()) == 0


async def test_nothing_below_a_trace_that_is_not_kept_begins_one_that_is(stub: OtlpStub) -> None:
    async with open_tracing(ON, service="s", instance="i") as tracing:
        with tracing.current(SKIPPED):
            assert tracing.begin("below", SpanKind.PRODUCER) is SKIPPED


async def test_sampler_of_the_environment_that_keeps_no_trace_skips_it_too(
    stub: OtlpStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with open_tracing(ON, service="s", instance="i") as tracing:
        assert tracing.begin("one", SpanKind.PRODUCER) is SKIPPED
