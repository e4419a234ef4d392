"""What a process's settings make of tracing: spans by OTLP over HTTP, samplers, and collectors that are not there."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan

from coditect.errors import SetupError, install_command
from coditect.settings.settings import Settings, read_settings
from coditect.telemetry.otlp import EXPORT_CLOSE_SECONDS, Quiet, open_otlp
from coditect.telemetry.process import open_tracing
from coditect.telemetry.tracing import NO_TRACING, SKIPPED, Span, SpanKind, TraceHeaders, Tracing, read_traceparent
from coditect.wire.headers import TraceContext

ON = Settings(tracing="otlp")
DEPLOY = Path(__file__).parents[3] / "deploy" / "observability"


class OtlpStub:
    """What arrived so far, and where it is to be sent."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.received: list[ResourceSpans] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        """The path and the headers, by their names in lower case, of each request."""

    def spans(self) -> list[SentSpan]:
        return [span for one in self.received for scope in one.scope_spans for span in scope.spans]

    def services(self) -> set[str]:
        found = (pair for one in self.received for pair in one.resource.attributes)
        return {pair.value.string_value for pair in found if pair.key == "service.name"}


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpStub]:
    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                raise AssertionError("nothing asked for compression")
            kept.received += ExportTraceServiceRequest.FromString(body).resource_spans
            kept.requests.append((self.path, {name.lower(): text for name, text in self.headers.items()}))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name upstream
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        kept = OtlpStub(server.server_port)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", kept.endpoint)
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            yield kept
        finally:
            server.shutdown()
            serving.join()


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port at which nobody listens: taken, and never listened at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        yield port


def begun(tracing: Tracing, name: str, kind: SpanKind = SpanKind.INTERNAL, parent: TraceContext | None = None) -> Span:
    span = tracing.begin(name, kind, parent)
    assert span is not None
    return span


async def send_a_span() -> None:
    """A process with the tracing of the settings makes a span and ends."""
    async with open_tracing(ON, service="coditect-agent", instance="agent-1") as tracing:
        begun(tracing, "one").end()


async def test_spans_arrive_at_a_collector_with_what_the_process_is_called(stub: OtlpStub) -> None:
    async with open_tracing(ON, service="coditect-agent", instance="agent-1") as tracing:
        outer = begun(tracing, "publish coditect.submit:a.b.p1", SpanKind.PRODUCER)
        inner = begun(tracing, "process", SpanKind.CONSUMER, outer)
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
    assert {pair.key for pair in process.attributes} == {"coditect.attempt", "coditect.redelivered", "error.type"}
    assert 0 < publish.start_time_unix_nano <= process.start_time_unix_nano <= process.end_time_unix_nano


async def test_spans_go_to_an_endpoint_below_a_path_with_a_key_and_a_project_as_langsmith_wants_them(
    stub: OtlpStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"{stub.endpoint}/otel")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=lsv2_1,Langsmith-Project=coditect")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "reviewers")
    await send_a_span()

    ((path, headers),) = stub.requests
    assert path == "/otel/v1/traces"
    assert stub.services() == {"reviewers"}
    assert (headers["x-api-key"], headers["langsmith-project"]) == ("lsv2_1", "coditect")
    assert headers["content-type"] == "application/x-protobuf"


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
        for span in [begun(tracing, "one") for _ in range(200)]:
            span.end()

    assert len(stub.spans()) == kept


async def test_new_traces_are_kept_up_to_a_rate_and_what_goes_on_always(stub: OtlpStub) -> None:
    sampled, unsampled = (TraceHeaders(f"00-{7:032x}-{9:016x}-{flag}") for flag in ("01", "00"))
    async with open_otlp("s", "i", new_per_second=5) as tracing:
        new = [begun(tracing, "new", SpanKind.PRODUCER) for _ in range(1_000)]
        known = [begun(tracing, "known", SpanKind.CONSUMER, sampled) for _ in range(20)]
        dropped = begun(tracing, "dropped", SpanKind.CONSUMER, unsampled)

    assert 5 <= sum(span.sampled for span in new) <= 6
    assert all(span.sampled for span in known)
    assert (dropped.sampled, dropped.traceparent[-3:], dropped.trace_id) == (False, "-00", 7)


async def test_collector_that_is_not_there_costs_no_caller_any_time(
    closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_tracing(ON, service="s", instance="i") as tracing:
        parent = TraceHeaders(f"00-{7:032x}-{9:016x}-01")
        start = time.perf_counter()
        for _ in range(10_000):  # many times what the queue holds
            begun(tracing, "one", SpanKind.CONSUMER, parent).end()
        took = time.perf_counter() - start
        closing = time.perf_counter()
    closed = time.perf_counter() - closing

    assert took < 5  # 0.2 s on an idle machine; a call that waited for one export alone takes ten
    assert closed < EXPORT_CLOSE_SECONDS + 3
    assert sum(record.name.startswith("opentelemetry") for record in caplog.records) <= 1


async def test_loop_goes_on_while_the_last_spans_are_sent_to_nobody(closed_port: int) -> None:
    tracing = open_tracing(ON, service="s", instance="i")
    begun(tracing, "one").end()
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
    monkeypatch.setitem(sys.modules, "coditect.telemetry.otlp", None)

    with pytest.raises(SetupError, match=re.escape(install_command("telemetry"))):
        open_tracing(ON, service="s", instance="i")


@pytest.mark.parametrize("value", ["jaeger", "true"])
def test_other_value_of_the_setting_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="CODITECT_TRACING"):
        read_settings({"CODITECT_TRACING": value}, folder=tmp_path)


def test_programs_import_the_adapter_only_where_tracing_is_on() -> None:
    """redis-py imports OpenTelemetry by itself where it is installed."""
    code = (
        "import sys, coditect.agent.program, coditect.client.program, dispatcher.program;"
        "print([name for name in sys.modules if name in ('coditect.telemetry.otlp', 'google.protobuf')])"
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
    async with open_otlp("s", "i", new_per_second=0.001) as tracing:
        spans = [tracing.begin("new", SpanKind.PRODUCER) for _ in range(1_001)]
        inner = begun(tracing, "inner", SpanKind.CONSUMER, SKIPPED)

    assert spans.count(SKIPPED) == 1_000
    told = [read_traceparent(SKIPPED.traceparent) for _ in range(1_000)]
    assert len({one.trace_id for one in told if one is not None and not one.sampled}) == 1_000
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


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize(
    ("protocol", "endpoint"),
    [
        ("grpc", "http://user:s3cretPW@127.0.0.1:1"),
        ("grpc", "user:s3cretPW@127.0.0.1:1"),
        ("grpc", "http://u:s3cretPW@[::1:1"),
        ("http/protobuf", "http://user:s3cretPW/x@127.0.0.1:1"),
        ("http/protobuf", "http://user:s3cret PW@127.0.0.1:1"),
        ("http/protobuf", "user:s3cretPW@127.0.0.1:1"),
    ],
)
def test_endpoint_whose_password_the_exporter_would_show_is_refused_without_it(
    variable: str, protocol: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv(variable, endpoint)

    with pytest.raises(SetupError) as refused:
        open_tracing(ON, service="s", instance="i")

    assert refused.value.facts["variable"] == variable
    assert "OTEL_EXPORTER_OTLP_HEADERS" in str(refused.value.facts["fix"])
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("protocol", "endpoint"),
    [
        ("grpc", ""),
        ("grpc", "127.0.0.1:1"),
        ("grpc", "localhost:1"),
        ("grpc", "http://[::1]:1"),
        ("http/protobuf", "http://user:s3cretPW@127.0.0.1:1/@tenant"),
    ],
)
async def test_endpoint_that_an_exporter_takes_is_not_refused(
    protocol: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    async with open_tracing(ON, service="s", instance="i") as tracing:
        assert tracing.active
