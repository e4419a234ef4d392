"""Tests of the greeter's capability and workflow on an in-memory fleet, with virtual time."""

from pathlib import Path

from greeter import greeter

from coditect.testing import TestFleet
from coditect.workflow.documents.file import load_workflow

WORKFLOW = Path(__file__).parent / "greetings.yaml"


async def test_somebody_is_greeted() -> None:
    async with TestFleet(agents=[greeter]) as fleet:
        assert await fleet.request("hello.greet", "Ada") == "Hello, Ada!"


async def test_everybody_is_greeted_although_an_agent_dies() -> None:
    async with TestFleet(agents=[greeter], replicas=2) as fleet:
        run = await fleet.start(load_workflow(WORKFLOW), {"names": ["Ada", "Grace"]})
        fleet.kill("greeter-1")
        assert await run.result() == ["Hello, Ada!", "Hello, Grace!"]
