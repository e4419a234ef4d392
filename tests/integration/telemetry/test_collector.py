"""A workflow's trace as a real OpenTelemetry Collector receives it from three processes, over gRPC and HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from coditect import Client, Workflow
from coditect.local import PrivateServers
from coditect.local.servers import free_ports
from tests.servers import ROOT
from tests.support import eventually

COLLECTOR = os.environ.get("CODITECT_OTELCOL", "")
AGENT = Path(__file__).parent / "traced_agent.py"

pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(not COLLECTOR, reason="no OpenTelemetry Collector: `make collector-test` builds one"),
]


@dataclass(frozen=True, slots=True)
class Collector:
    """A running collector: its ports, and the file that it writes."""

    grpc: int
    http: int
    file: Path

    def spans(self) -> list[dict[str, Any]]:
        """Every span that has arrived, with the service that sent it and its attributes as a plain object."""
        if not self.file.exists():
            return []
        lines = [json.loads(line) for line in self.file.read_text().splitlines() if line.endswith("}")]
        return [
            span | {"service": _values(one["resource"])["service.name"], "told": _values(span)}
            for line in lines
            for one in line["resourceSpans"]
            for scope in one["scopeSpans"]
            for span in scope["spans"]
        ]


def _values(of: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: next(iter(pair["value"].values())) for pair in of.get("attributes", [])}


@contextmanager
def collector(folder: Path) -> Iterator[Collector]:
    """The collector of `deploy/observability/collector.yaml`, on ports of its own, with a file in Jaeger's place."""
    grpc, http = free_ports(2)
    config = yaml.safe_load((ROOT / "deploy" / "observability" / "collector.yaml").read_text())
    config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"] = f"127.0.0.1:{grpc}"
    config["receivers"]["otlp"]["protocols"]["http"]["endpoint"] = f"127.0.0.1:{http}"
    config["exporters"] = {"file": {"path": str(folder / "spans.jsonl"), "flush_interval": "100ms"}}
    config["service"]["pipelines"]["traces"]["exporters"] = ["file"]
    config["service"]["telemetry"] = {"metrics": {"level": "none"}}
    config["processors"]["batch"]["timeout"] = "100ms"
    (folder / "collector.yaml").write_text(yaml.safe_dump(config))
    with (folder / "collector.log").open("w") as log:
        process = subprocess.Popen([COLLECTOR, "--config", str(folder / "collector.yaml")], stdout=log, stderr=log)
        try:
            yield Collector(grpc, http, folder / "spans.jsonl")
            assert process.poll() is None, (folder / "collector.log").read_text()
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def program(folder: Path, environment: dict[str, str], *arguments: str) -> Iterator[Path]:
    """A program of ours, and the file that it makes when it is ready."""
    ready = folder / f"ready-{arguments[0]}"
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], env=environment | {"CODITECT_READY_FILE": str(ready)}
    )
    try:
        yield ready
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)


def numbers() -> Workflow:
    flow = Workflow("numbers")
    first = flow.task("trace.read", 3, name="first")
    quad = flow.task("trace.quadruple", first.result, name="quad")
    shaky = flow.task("trace.shaky", first.result, name="shaky")
    flow.task("trace.sum", [quad.result, shaky.result], name="total")
    return flow


def tree(spans: list[dict[str, Any]], parent: str = "") -> list[Any]:
    """The spans below a span, each by what it does with which node (or capability), and what is below it."""
    below = [span for span in spans if span.get("parentSpanId", "") == parent]
    return sorted([[label(span), *tree(spans, span["spanId"])] for span in below])


def label(span: dict[str, Any]) -> str:
    told = span["told"]
    what = told.get("coditect.node_id") or told.get("coditect.capability") or told.get("coditect.workflow.name")
    return f"{span['service'].removeprefix('coditect-')} {told.get('messaging.operation.name', span['name'])} {what}"


@contextmanager
def traced_programs(servers: PrivateServers, collected: Collector, folder: Path) -> Iterator[dict[str, str]]:
    """A dispatcher that sends spans by HTTP and an agent that sends them by gRPC; yields the client's environment."""
    common = {
        **os.environ,
        "CODITECT_AMQP_URL": servers.amqp_url,
        "CODITECT_REDIS_URL": servers.redis_url,
        "CODITECT_STORE_URL": f"sqlite:{folder / 'ledger.db'}",
        "CODITECT_TRACING": "otlp",
        "CODITECT_LOG_LEVEL": "WARNING",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collected.http}",
    }
    by_grpc = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collected.grpc}",
    }
    with (
        program(folder, common, "dispatcher") as dispatching,
        program(folder, common | by_grpc, "coditect", "agent", "run", str(AGENT)) as working,
    ):
        deadline = time.monotonic() + 120
        while not (dispatching.exists() and working.exists()):
            assert time.monotonic() < deadline, "the programs are not ready"
            time.sleep(0.05)
        yield common


async def test_workflow_is_one_tree_over_client_dispatcher_and_agent(
    own_servers: PrivateServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collector(tmp_path) as collected, traced_programs(own_servers, collected, tmp_path) as environment:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
        async with Client.from_env(environment) as client:
            run = await client.start(numbers())
            assert await run.result(timeout="60s") == 15
        await eventually(lambda: len(collected.spans()) >= 19, seconds=60)
        spans = collected.spans()

    def node(name: str, *asked: Any) -> list[Any]:
        ends = [f"dispatcher process {name}"]
        return [f"dispatcher publish {name}", [f"agent process {name}", *asked], ends]

    inner = ["agent publish trace.double", ["agent process trace.double"]]
    assert len({span["traceId"] for span in spans}) == 1
    assert tree(spans) == [
        [
            "client publish numbers",
            [
                "dispatcher process numbers",
                node("first"),
                node("quad", inner),
                node("shaky"),
                node("shaky"),
                node("total"),
            ],
        ]
    ]
    shaky = [one for one in spans if one["told"].get("coditect.node_id") == "shaky" and "links" in one]
    assert [one["told"]["coditect.attempt"] for one in shaky] == ["2"]
    failed = [one for one in spans if one.get("status", {}).get("code") == 2]
    assert [(one["told"]["error.type"], one["status"]["message"]) for one in failed] == [
        ("OSError", "the first attempt fails")
    ]
    assert {one["kind"] for one in spans if one["told"]["messaging.operation.type"] == "send"} == {4}
    assert {one["kind"] for one in spans if one["told"]["messaging.operation.type"] == "process"} == {5}
