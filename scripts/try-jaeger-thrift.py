"""Try Jaeger's retired Thrift exporter against a stub of the collector: prints the versions and what arrived.

Run in an environment that has `opentelemetry-exporter-jaeger-thrift` beside some `opentelemetry-sdk`; see ADR 31.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

PACKAGES = ("opentelemetry-sdk", "opentelemetry-exporter-jaeger-thrift", "thrift")


def main() -> None:
    """Export one span to the stub; fails as the import or the export fails."""
    arrived: list[tuple[str, int]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            arrived.append((self.path, len(body)))
            self.send_response(202)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name upstream
            pass

    print({name: version(name) for name in PACKAGES})
    from opentelemetry.exporter.jaeger.thrift import JaegerExporter  # noqa: PLC0415 - the import is what is tried
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}/api/traces?format=jaeger.thrift"
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(JaegerExporter(collector_endpoint=endpoint)))
        with provider.get_tracer("trial").start_as_current_span("publish coditect.submit"):
            pass
        provider.shutdown()
        server.shutdown()
    print(arrived)


if __name__ == "__main__":
    main()
