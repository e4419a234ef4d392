"""What `make api-fuzz` found: answers that were errors of the server, or not those that the schema documents."""

from __future__ import annotations

import asyncio

from coditect import Agent, Workflow
from coditect.testing import TestFleet
from tests.api import api_of


def resting() -> Agent:
    agent = Agent("resting")

    @agent.capability("rest.long")
    async def rest(_: object) -> None:
        await asyncio.sleep(600)

    return agent


async def test_workflow_that_has_not_ended_is_no_error_of_the_server() -> None:
    flow = Workflow("resting")
    flow.task("rest.long")
    async with TestFleet(agents=[resting()]) as fleet, api_of(fleet) as http:
        run = await fleet.client.start(flow)
        answer = await http.get(f"/v1/workflows/{run.id}/result")

    assert (answer.status_code, answer.json()) == (202, {"workflow": run.id})


async def test_agent_that_still_drains_is_no_error_of_the_server() -> None:
    async with TestFleet(agents=[resting()]) as fleet, api_of(fleet) as http:
        handle = await fleet.client.submit("rest.long")
        await fleet.advance("1s")
        (agent,) = (await http.get("/v1/agents")).json()
        answer = await http.post(f"/v1/agents/{agent['agent_id']}/drain", json={"wait": "5ms"})
        await handle.cancel()

    assert (answer.status_code, answer.content) == (202, b"")


async def test_wait_is_bounded() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        answer = await http.get("/v1/workflows/some/result?wait=301s")

    assert answer.status_code == 422
    assert "at most 5m" in answer.text


async def test_path_that_fits_a_template_too_allows_its_own_methods_only() -> None:
    async with TestFleet() as fleet, api_of(fleet) as http:
        answer = await http.request("OPTIONS", "/v1/dead/redrive")

    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_direct_task_that_would_run_too_long_is_a_mistake_of_the_request() -> None:
    order = {"capability": "rest.long", "timeout": "9d"}
    async with TestFleet(agents=[resting()]) as fleet, api_of(fleet) as http:
        answer = await http.post("/v1/tasks", json=order)

    assert answer.status_code == 422
    assert "durable" in answer.json()["fix"]
