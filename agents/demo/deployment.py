"""``python -m agents.demo.deployment``: two branches of a small HTTP service are deployed, and one is rolled back.

It makes a git repository and a running service below ``.coditect/demo/shop``, starts private servers and a fleet, and
runs `examples/pr_deployment.yaml` for each branch. The exit code is 0 only when the good branch is released, and the
broken one is rolled back while its reason is known.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agents.demo.fleet import demo_folder, running_fleet
from agents.demo.flow import Flow, describe_flow
from agents.demo.shop import BROKEN, GOOD, make_shop
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


async def deploy(client: Client, root: Path, given: Mapping[str, str]) -> Deployment:
    """Run the deployment workflow for one branch to its end, check that the service is healthy, and return the result.

    Raises:
        TaskFailed: the service is not well afterwards.
        CoditectError: the workflow could not be started, or did not end in time.
    """
    service, definition = Service(root / given["service"]), load_workflow(root / FLOW)
    before, why = service.version, ""
    run = await client.start(definition, given)
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
                say(_told(GOOD, good))
                broken = await deploy(client, root, {**places, "branch": BROKEN})
                say(_told(BROKEN, broken))
        finally:
            await asyncio.to_thread(Service(service).stop)
    return good.released and broken.rolled_back


def _told(branch: str, of: Deployment) -> str:
    versions = f"the service answers as {(of.after or 'none')[:12]}, before as {(of.before or 'none')[:12]}"
    why = [f"  Why: {of.why}"] if of.why else []
    return "\n".join(["", f"Branch {branch}: {versions}", *why, describe_flow(of.flow)])


def main() -> int:
    """Deploy both branches; return exit code 0 if the good one is released and the broken one rolled back, else 1."""
    try:
        return 0 if run_loop(run_deployments(Path(__file__).resolve().parents[2], say=print)) else 1
    except* CoditectError as errors:
        print("The deployment could not run:", *errors.exceptions, sep="\n  ")
    return 1


if __name__ == "__main__":
    sys.exit(main())
