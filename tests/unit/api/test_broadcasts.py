"""One request to several agents over HTTP: all answers at once, and each as it comes."""

from __future__ import annotations

import asyncio
import json

import pytest
from httpx2 import AsyncClient

from coditect import Agent
from coditect.testing import TestFleet
from tests.api import caller_that_leaves


def digests() -> Agent:
    agent = Agent("digests")

    @agent.capability("text.count")
    async def count(text: str) -> bytes:
        """Return bytes."""
        return text.encode()

    return agent


async def test_each_agent_s_answer_or_what_is_wrong_with_it_is_returned(fleet: TestFleet, api: AsyncClient) -> None:
    await fleet.add(digests())
    order = {"capability": "text.count", "input": "four", "agents": ["counter", "digests", "countr"], "timeout": "5s"}

    answer = await api.post("/v1/broadcasts", json=order)
    everyone = await api.post("/v1/broadcasts", json={"capability": "text.count", "input": ""})

    answers = {one["agent"]: one for one in answer.json()["answers"]}
    assert answer.status_code == 200
    assert (answers["counter"]["answered"], answers["counter"]["value"]) == (True, 4)
    assert answers["digests"]["value_base64"] == "Zm91cg=="
    assert answers["countr"]["answered"] is False
    assert answers["countr"]["error"]["type"] == "urn:coditect:problem:not-found"
    assert answers["countr"]["error"]["facts"]["nearest"][0].startswith("counter")
    assert sorted(one["answered"] for one in everyone.json()["answers"]) == [False, True]


async def test_answers_are_followed_as_they_come(api: AsyncClient) -> None:
    order = {"capability": "text.count", "input": "four", "agents": ["counter", "nobody"]}

    streamed = await api.post("/v1/broadcasts/stream", json=order)

    *answers, end = streamed.text.strip().split("\n\n")
    told = {one["agent"]: one for one in (json.loads(event.removeprefix("data: ")) for event in answers)}
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert (told["counter"]["value"], told["nobody"]["error"]["status"]) == (4, 404)
    assert end == "event: end\ndata: {}"


@pytest.mark.parametrize("path", ["/v1/broadcasts", "/v1/broadcasts/stream"])
async def test_tasks_without_an_answer_are_canceled_when_the_caller_goes_away(
    fleet: TestFleet, api: AsyncClient, path: str
) -> None:
    silent = Agent("silent")

    @silent.capability("text.count")
    async def never(text: str) -> None:
        await asyncio.get_running_loop().create_future()

    await fleet.add(silent)
    order = {"capability": "text.count", "input": "four", "timeout": "5m"}
    async with caller_that_leaves(api, path, order) as sent:
        await fleet.advance("20s")
        streamed = b"".join(message.get("body", b"") for message in sent)
        running = sum(process.load.running for process in fleet.agents)
    await fleet.settled()

    assert running == 1
    assert fleet.elapsed_seconds < 60
    assert [process.load.running for process in fleet.agents] == [0, 0]
    if path.endswith("stream"):
        assert sent[0]["status"] == 200
        assert b'"value":4' in streamed
        assert streamed.endswith(b": ping\n\n")


async def test_broadcast_that_cannot_be_made_is_refused_before_any_answer(api: AsyncClient) -> None:
    for path in ("/v1/broadcasts", "/v1/broadcasts/stream"):
        unknown = await api.post(path, json={"capability": "text.cuont", "input": "four"})
        late = await api.post(path, json={"capability": "text.count", "timeout": "6m"})

        assert (unknown.status_code, unknown.json()["facts"]["nearest"]) == (422, ["text.count"])
        assert (late.status_code, late.json()["mistakes"][0]["at"]) == (422, "body.timeout")
