"""A collector that takes spans by OTLP over HTTP and drops them: `python -m benchmarks.programs.collector PORT`."""

from __future__ import annotations

import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from coditect.aio.launch import tell_ready


class Discarding(BaseHTTPRequestHandler):
    """The handler that reads a batch of spans and answers that it was taken."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take a batch of spans."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name upstream
        """Write nothing."""


def main() -> None:
    """Serve until the process is stopped by SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Discarding) as server:
        tell_ready()
        server.serve_forever()


if __name__ == "__main__":
    main()
