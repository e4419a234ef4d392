"""A stub of a collector: takes spans by OTLP over HTTP and keeps them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


class OtlpStub:
    """What arrived so far, and where it is to be sent."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.received: list[ResourceSpans] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        """The path and the headers, by their names in lower case, of each request."""

    def spans(self) -> list[Span]:
        return [span for one in self.received for scope in one.scope_spans for span in scope.spans]

    def services(self) -> set[str]:
        found = (pair for one in self.received for pair in one.resource.attributes)
        return {pair.value.string_value for pair in found if pair.key == "service.name"}


@contextmanager
def collecting() -> Iterator[OtlpStub]:
    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                raise AssertionError("nothing asked for compression")
            stub.received += ExportTraceServiceRequest.FromString(body).resource_spans
            stub.requests.append((self.path, {name.lower(): text for name, text in self.headers.items()}))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name upstream
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        stub = OtlpStub(server.server_port)
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            yield stub
        finally:
            server.shutdown()
            serving.join()
