"""The sample of the deployment demo: a small HTTP service in a git repository, with a good branch and one that breaks.

The tests of both branches are green. `currency` reads a variable at its start that no one sets: only a running service
shows that.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path

from agents.deployment.repository import commit_of, worktree
from agents.deployment.service import Service

GOOD, BROKEN = "discount", "currency"
_APP = '''"""A shop that answers over HTTP."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prices import total


class Shop(BaseHTTPRequestHandler):
    """Answers each request with the version, and a total."""

    def do_GET(self):
        """Answer as JSON."""
        body = json.dumps({"version": os.environ["SERVICE_VERSION"], "total": total([20, 30])}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Shop).serve_forever()
'''
_PRICES = '''"""The prices of the shop."""


def total(prices):
    """Return what a cart costs."""
    return sum(prices)
'''
_TESTS = """from prices import total


def test_total():
    assert total([20, 30]) == 50
"""
_MAIN = {"app.py": _APP, "prices.py": _PRICES, "test_prices.py": _TESTS}
_BRANCHES = {
    GOOD: {
        "prices.py": _PRICES.replace("return sum(prices)", "return round(sum(prices) * 0.9)"),
        "test_prices.py": _TESTS.replace("50", "45"),
    },
    BROKEN: {"app.py": _APP.replace("\n\nclass Shop", '\nCURRENCY = os.environ["SHOP_CURRENCY"]\n\n\nclass Shop')},
}


def make_shop(folder: Path) -> tuple[Path, Path]:
    """Make the shop's repository and service from scratch, with branch `main` deployed; return both folders."""
    shutil.rmtree(folder, ignore_errors=True)
    repository, service = folder / "repository", Service(folder / "service")
    repository.mkdir(parents=True)
    _git(repository, "init", "--quiet", "--initial-branch", "main")
    _commit(repository, "feat: open the shop", _MAIN)
    for branch, files in _BRANCHES.items():
        _git(repository, "switch", "--quiet", "--create", branch, "main")
        _commit(repository, f"feat: add a {branch}", files)
    _git(repository, "switch", "--quiet", "main")
    version = commit_of(repository, "main")
    service.release_folder(version).parent.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (service.folder / "port").write_text(str(free.getsockname()[1]))
    with worktree(repository, version, "first") as tree:
        service.install(version, tree)
    service.switch(version)
    service.probe(version, within_seconds=30)
    return repository, service.folder


def _commit(repository: Path, message: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (repository / name).write_text(text)
    _git(repository, "add", ".")
    _git(repository, "commit", "--quiet", "--message", message)


def _git(repository: Path, *arguments: str) -> None:
    author = ("-c", "user.name=Shop", "-c", "user.email=shop@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *author, "-C", str(repository), *arguments], check=True)
