"""A Git server with one repository and its pull requests, as GitHub's and Gitea's public API documentation has them.

It refuses fields that the documentation does not name, requests without the token and, as GitHub, comments on lines
that are not in the diff. Clones and fetches are served by git's own `http-backend`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from agents.tools.diff import parse_diff

TOKEN = "a-token-of-the-tests"
REVIEW = {"commit_id", "event", "body", "comments"}
COMMENT = {
    "github": {"path", "body", "line", "side", "start_line", "start_side", "position"},
    "gitea": {"path", "body", "new_position", "old_position"},
}
STATUS = {"state", "target_url", "description", "context"}
STATES = {"github": {"error", "failure", "pending", "success"}}
STATES["gitea"] = {*STATES["github"], "warning"}
PREFIX = {"github": "/api/v3", "gitea": "/api/v1"}


@dataclass
class GitServerStub:
    """The repository `ada/shop`, and what was posted."""

    kind: Literal["github", "gitea"]
    repository: Path
    url: str = ""
    pulls: dict[int, dict[str, Any]] = field(default_factory=dict)
    reviews: list[dict[str, Any]] = field(default_factory=list)
    statuses: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """The requests, as method and path."""
    answers: list[int] = field(default_factory=list)
    """Statuses that the next requests to the API get in place of their answers."""
    message: str = "as the test wants it"
    """What these answers say."""
    page: int = 50
    """The most elements of a page."""

    def open(self, number: int, branch: str, *, source: str = "ada/shop", state: str = "open") -> str:
        """Open a pull request of a branch for `main`; return its head."""
        commit = self.git("rev-parse", branch)
        self.git("update-ref", f"refs/pull/{number}/head", commit)
        repository = {"full_name": source} if source else None
        self.pulls[number] = {
            "number": number,
            "state": state,
            "title": f"Add a {branch}",
            "html_url": f"{self.url}/ada/shop/pulls/{number}",
            "user": {"login": "ada", "id": 1},
            "head": {"ref": branch, "sha": commit, "repo": repository, "label": branch},
            "base": {"ref": "main", "sha": self.git("rev-parse", "main"), "repo": {"full_name": "ada/shop"}},
            "draft": False,
        }
        return commit

    def git(self, *arguments: str) -> str:
        """Return what git prints in the repository."""
        command = ["git", "-C", str(self.repository), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def answer(self, method: str, path: str, document: Any) -> tuple[int, Any]:
        """Return the status and the document that the API answers with."""
        if self.answers:
            return self.answers.pop(0), {"message": self.message}
        place, _, query = path.partition("?")
        kind, name, *below = [*place.removeprefix("/repos/ada/shop").strip("/").split("/"), ""]
        if method == "GET" and (kind, self.kind) == ("version", "gitea"):
            return 200, {"version": "1.22.1"}
        if kind == "pulls" and int(name) in self.pulls:
            pull = self.pulls[int(name)]
            if method == "GET":
                return 200, self._listed(parse_qs(query)) if below[0] == "reviews" else pull
            return self._review(pull, document)
        if (method, kind) == ("POST", "statuses"):
            return self._status(name, document)
        return 404, {"message": "Not Found"}

    def _listed(self, asked: dict[str, list[str]]) -> list[dict[str, Any]]:
        length = min(int(asked["per_page" if self.kind == "github" else "limit"][0]), self.page)
        begin = (int(asked["page"][0]) - 1) * length
        return self.reviews[begin : begin + length]

    def _status(self, commit: str, document: Any) -> tuple[int, Any]:
        if not {*document} <= STATUS or document["state"] not in STATES[self.kind]:
            return 422, {"message": f"unknown: {document}"}
        self.statuses.append({**document, "commit": commit})
        return 201, {**document, "id": len(self.statuses)}

    def _review(self, pull: dict[str, Any], document: Any) -> tuple[int, Any]:
        comments = document["comments"]
        keys = set[str]().union(*comments)
        if not {*document} <= REVIEW or not keys <= COMMENT[self.kind] or document["event"] != "COMMENT":
            return 422, {"message": f"unknown: {document}"}
        if not document["body"]:
            return 422, {"message": "Body is required"}
        if self.kind == "github":
            diff = self.git("diff", f"{pull['base']['sha']}...{pull['head']['sha']}")
            shown = {(one.file, one.start + at) for one in parse_diff(diff) for at in range(len(one.lines))}
            if any((one["path"], one["line"]) not in shown for one in comments):
                return 422, {"message": "Unprocessable Entity", "errors": ["Line could not be resolved"]}
        self.reviews.append(document)
        return 200, {"id": len(self.reviews), "body": document["body"], "state": "COMMENTED"}

    def serve_git(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Answer a request of git's own protocol."""
        parts = urlsplit(request.path)
        backend = Path(subprocess.check_output(["git", "--exec-path"], text=True).strip()) / "git-http-backend"
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.repository),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": re.sub(r"^/ada/shop(\.git)?", "/.git", parts.path),
            "QUERY_STRING": parts.query,
            "REQUEST_METHOD": request.command,
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
        }
        ran = subprocess.run([backend], input=body, env=environment, capture_output=True, check=True)
        head, _, content = ran.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        request.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in fields.items():
            request.send_header(name, value)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)


def _handler(stub: GitServerStub) -> type[BaseHTTPRequestHandler]:
    basic = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            stub.asked.append(f"{self.command} {self.path}")
            given = self.headers.get("authorization")
            if not self.path.startswith("/api/"):
                if given == f"Basic {basic}":
                    stub.serve_git(self, body)
                else:
                    self._tell(401, {"message": "Requires authentication"})
            elif given not in (f"token {TOKEN}", f"Bearer {TOKEN}"):
                self._tell(401, {"message": "Bad credentials"})
            elif self.path.startswith(PREFIX[stub.kind]):
                self._tell(
                    *stub.answer(self.command, self.path.removeprefix(PREFIX[stub.kind]), json.loads(body or "{}"))
                )
            else:
                self._tell(404, {"message": "Not Found"})

        def _tell(self, status: int, document: Any) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    return Handler


@contextmanager
def git_server(kind: Literal["github", "gitea"], repository: Path) -> Iterator[GitServerStub]:
    """Serve a repository on a free port of this machine for the block."""
    stub = GitServerStub(kind, repository)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    stub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
