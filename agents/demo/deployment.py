"""``python -m agents.demo.deployment``: two branches of a small HTTP service are deployed, and one is rolled back.

It makes a git repository and a running service below ``.coditect/demo/shop``, starts private servers and a fleet, and
runs `examples/pr_deployment.yaml` for each branch. The exit code is 0 only when the good branch is released, and the
broken one is rolled back while its reason is known.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.demo.fleet import demo_folder, explain, running_fleet
from agents.demo.flow import Flow, describe_flow
from agents.deployment.repository import commit_of, worktree
from agents.deployment.service import Service
from coditect import Client
from coditect.aio.loop import run_loop
from coditect.errors import CoditectError
from coditect.workflow.documents.file import load_workflow
from coditect.workflow.states import WorkflowState

FLOW = Path("examples") / "pr_deployment.yaml"
POLICY = Path("examples") / "policies" / "pr_deployment.yaml"
AGENTS = {
    "deployer-1": ("agents/deployer.py",),
    "reviewer-1": ("agents/reviewer.py",),
    "tester-1": ("agents/tester.py",),
}
_WITHIN = "3m"
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


@dataclass(frozen=True, slots=True)
class Deployment:
    """The result of deploying one branch: the ended workflow, and the service's versions before and after it."""

    flow: Flow
    why: str
    """Why it was rolled back; empty when it was released."""
    before: str | None
    after: str | None
    """The version of the service before the deployment (`before`) and after it (`after`)."""

    @property
    def released(self) -> bool:
        """True when the workflow released the branch, and the service now has another version than before."""
        return self.flow.state is WorkflowState.COMPLETED and self.after not in (None, self.before)

    @property
    def rolled_back(self) -> bool:
        """True when the workflow rolled the branch back, and the service has the same version as before."""
        return self.flow.state is WorkflowState.COMPENSATED and bool(self.why) and self.after == self.before


async def deploy(client: Client, root: Path, workflow_input: Mapping[str, str]) -> Deployment:
    """Run the deployment workflow for one branch to its end, check that the service is healthy, and return the result.

    Raises:
        TaskFailed: the service is not well afterwards.
        CoditectError: the workflow could not be started, or did not end in time.
    """
    service, definition = Service(root / workflow_input["service"]), load_workflow(root / FLOW)
    before, why = service.version, ""
    run = await client.start(definition, workflow_input)
    state = await run.wait(timeout=_WITHIN)
    try:
        await run.result()
    except CoditectError as error:
        why = str(error.facts.get("message") or error)
    after = service.version
    if after is not None:
        await asyncio.to_thread(service.probe, after, within_seconds=10)
    rows = [row async for row in run.nodes()]
    return Deployment(Flow(definition, state, rows), why, before, after)


async def run_deployments(root: Path, *, say: Callable[[str], None]) -> bool:
    """Start a fleet, deploy a good and a broken branch; return whether the first is released, the second rolled back.

    Raises:
        CoditectError: a server or an agent could not be started.
    """
    with demo_folder(root) as folder:
        repository, service = await asyncio.to_thread(make_shop, folder / "shop")
        places = {"repository": str(repository.relative_to(root)), "service": str(service.relative_to(root))}
        policy = {"CODITECT_APPROVAL_POLICY": str(root / POLICY)}
        try:
            async with (
                running_fleet(root, folder, settings=policy, say=say, agents=AGENTS) as fleet,
                Client.from_env(fleet.environ) as client,
            ):
                good = await deploy(client, root, {**places, "branch": GOOD})
                say(_described(GOOD, good))
                broken = await deploy(client, root, {**places, "branch": BROKEN})
                say(_described(BROKEN, broken))
        finally:
            await asyncio.to_thread(Service(service).stop)
    return good.released and broken.rolled_back


def _described(branch: str, deployment: Deployment) -> str:
    after, before = ((version or "none")[:12] for version in (deployment.after, deployment.before))
    versions = f"the service answers as {after}, before as {before}"
    why = [f"  Why: {deployment.why}"] if deployment.why else []
    return "\n".join(["", f"Branch {branch}: {versions}", *why, describe_flow(deployment.flow)])


# The sample that is deployed: a small HTTP service in a git repository, with a good branch and one that breaks.
#
# The tests of both branches are green. `currency` reads a variable at its start that no one sets: only a running
# service shows that.


def make_shop(folder: Path) -> tuple[Path, Path]:
    """Make the shop's repository and service from scratch, with branch `main` deployed; return both folders."""
    shutil.rmtree(folder, ignore_errors=True)
    repository, service = make_repository(folder / "repository"), Service(folder / "service")
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


def files_of(branch: str) -> dict[str, str]:
    """Return the files of a branch by their names."""
    return _MAIN | _BRANCHES[branch]


def make_repository(repository: Path) -> Path:
    """Make the shop's repository with its branches; return its folder."""
    repository.mkdir(parents=True)
    _git(repository, "init", "--quiet", "--initial-branch", "main")
    _commit(repository, "feat: open the shop", _MAIN)
    for branch, files in _BRANCHES.items():
        _git(repository, "switch", "--quiet", "--create", branch, "main")
        _commit(repository, f"feat: add a {branch}", files)
    _git(repository, "switch", "--quiet", "main")
    return repository


def _commit(repository: Path, message: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        (repository / name).write_text(text)
    _git(repository, "add", ".")
    _git(repository, "commit", "--quiet", "--message", message)


def _git(repository: Path, *arguments: str) -> None:
    author = ("-c", "user.name=Shop", "-c", "user.email=shop@example.com", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *author, "-C", str(repository), *arguments], check=True)


def main() -> int:
    """Deploy both branches; return exit code 0 if the good one is released and the broken one rolled back, else 1."""
    try:
        return 0 if run_loop(run_deployments(Path(__file__).resolve().parents[2], say=print)) else 1
    except* CoditectError as errors:
        print(explain(errors, title="The deployment could not run"))
    return 1


if __name__ == "__main__":
    sys.exit(main())
