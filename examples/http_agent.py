"""An agent that speaks only HTTP, and needs nothing but Python: it counts words."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WordCounter(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Count the words of one event's text."""
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        match event["parameters"]:
            case {"text": str(text)}:
                words = {"words": len(text.split())}
                status, answer = 200, {"request_id": event["event_id"], "status": "success", "result": words}
            case _:
                status, answer = 422, {"error": 'the input is {"text": "..."}'}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), WordCounter).serve_forever()
