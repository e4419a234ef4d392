"""An external metric as KEDA's metrics server serves it, through the API server's aggregation."""

from __future__ import annotations

import json
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from coditect.local.servers import free_ports
from tests.k8s.cluster import Cluster

GROUP = "external.metrics.k8s.io"
METRIC = "s0-rabbitmq"


class MetricServer(ThreadingHTTPServer):
    """An HTTPS server that answers with one value."""

    value = 0


class Answer(BaseHTTPRequestHandler):
    """The answer to one request: what the group has, or the metric's value."""

    def do_GET(self) -> None:
        assert isinstance(self.server, MetricServer)
        version = f"{GROUP}/v1beta1"
        item = {"metricName": METRIC, "timestamp": "2026-01-01T00:00:00Z", "value": str(self.server.value)}
        values = {"kind": "ExternalMetricValueList", "apiVersion": version, "items": [item]}
        group = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": []}
        body = json.dumps(values if METRIC in self.path else group).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


@contextmanager
def external_metric(cluster: Cluster, folder: Path, value: int) -> Iterator[None]:
    """Serve the metric with a value, and register its group at the API server, until the block ends."""
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*make, "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    server = MetricServer(("127.0.0.1", free_ports(1)[0]), Answer)
    server.value = value
    server.socket = context.wrap_socket(server.socket, server_side=True)
    Thread(target=server.serve_forever, daemon=True).start()
    cluster.create(*_registration(server.server_port))
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        cluster.kubectl("delete", "apiservice", f"v1beta1.{GROUP}")


def _registration(port: int) -> tuple[object, object]:
    """Return the objects by which the API server finds the group: a service that is a name outside, and its API."""
    place = {"name": "keda-metrics", "namespace": "default"}
    outside = {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]}
    api = {
        "service": place | {"port": port},
        "group": GROUP,
        "version": "v1beta1",
        "insecureSkipTLSVerify": True,
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
    }
    return (
        {"apiVersion": "v1", "kind": "Service", "metadata": place, "spec": outside},
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1beta1.{GROUP}"},
            "spec": api,
        },
    )
