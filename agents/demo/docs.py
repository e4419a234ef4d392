"""``python -m agents.demo.docs``: three agents document a package at the same time, and a site is made of it.

It starts private servers and a fleet, among it a markdown agent whose language model a stand-in is, and runs
`examples/parallel_docs.yaml`. The exit code is 0 only when the site is there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.demo.fleet import demo_folder, explain, running_fleet
from agents.demo.flow import Flow, describe_flow
from agents.tools.model_stub import StubAnswer, model_stub
from coditect import Client
from coditect.aio.loop import run_loop
from coditect.errors import CoditectError
from coditect.workflow.documents.file import load_workflow

FLOW = Path(__file__).resolve().parents[2] / "examples" / "parallel_docs.yaml"
AGENTS = {
    "documenter-1": ("agents/documenter.py",),
    "guide-writer-1": ("agents/guides.py:guide_writer",),
    "deployment-writer-1": ("agents/guides.py:deployment_writer",),
    "publisher-1": ("agents/publisher.py",),
    "writers-1": ("--name", "writers", "--markdown", "agents/writers"),
}
_MODEL_SECONDS = 2.0
_WITHIN = "3m"


def introduce(messages: Sequence[Mapping[str, Any]]) -> StubAnswer:
    """Answer in place of a language model that is asked to introduce a page: give its title and its first words."""
    page = json.loads(messages[1]["content"])
    words = [line for line in page["text"].splitlines() if line and line[0].isalpha()]
    return StubAnswer(f"This page is about {page['title']}. It begins: {(words or ['with a list'])[0]}")


async def write_site(root: Path, *, say: Callable[[str], None]) -> Path:
    """Start a fleet, run the workflow in which it documents a package and makes a site, and return the site's folder.

    Raises:
        CoditectError: a server or an agent could not be started, or the workflow did not complete.
    """
    with demo_folder(root) as folder:
        sites = (folder / "sites").relative_to(root)
        workflow_input = {"path": "coditect/workflow", "introduction": True, "folder": str(sites)}
        flow = load_workflow(FLOW)
        async with model_stub(introduce, seconds=_MODEL_SECONDS) as url:
            settings = {"CODITECT_CHAT_URL": url, "CODITECT_CHAT_MODEL": "stand-in"}
            async with (
                running_fleet(root, folder, settings=settings, say=say, agents=AGENTS) as fleet,
                Client.from_env(fleet.environ) as client,
            ):
                run = await client.start(flow, workflow_input)
                release = await run.result(timeout=_WITHIN)
                rows = [row async for row in run.nodes()]
                say(describe_flow(Flow(flow, await run.state(), rows)))
    return root / sites / str(release["name"])


def main() -> int:
    """Write the site, print where it is, and return the exit code: 0 if its `index.html` is there, else 1."""
    root, site = FLOW.parents[1], None
    try:
        site = run_loop(write_site(root, say=print))
    except* CoditectError as errors:
        print(explain(errors, title="The documents could not be written"))
    if site is None:
        return 1
    print(f"Each of the three waited {_MODEL_SECONDS:.0f} s for a stand-in of a model. Site: {site.relative_to(root)}")
    return 0 if (site / "index.html").is_file() else 1


if __name__ == "__main__":
    sys.exit(main())
