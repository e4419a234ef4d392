"""The routes at the root, for agents that speak only HTTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from coditect.api.access import Access, Caller, OpenAccess, Role
from coditect.api.application import create_app
from coditect.api.program import callback_address
from coditect.errors import SetupError, TaskFailed, TaskRejected
from coditect.integrations.http.bridge import HttpAgents
from coditect.integrations.json_schema import SchemaCheck
from coditect.model.ids import AgentId
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import ApiSettings, HttpAgentSettings
from tests.api import ADDRESS, services_of
from tests.support import eventually
from tests.unit.agent.scene import open_scene
from tests.unit.integrations.http.contract_agent import AGENT_ID, contract_agent
from tests.unit.integrations.http.stage import HOSTS, Given, Stage, StubAgent, open_bridge, stub_agent, success


class KeyAccess:
    """Access by a header that names the role; without it none."""

    async def caller(self, connection: HTTPConnection) -> Caller:
        role = connection.headers.get("x-role")
        if role is None:
            raise HTTPException(401, "no key")
        return Caller("test", Role(role))


@asynccontextmanager
async def open_api(*, access: Access | None = None) -> AsyncIterator[tuple[AsyncClient, Stage]]:
    async with (
        open_scene() as scene,
        open_bridge(scene, MemoryRegistry()) as stage,
        services_of(scene.server, scene.registry, await scene.client(), access=access or OpenAccess()) as services,
    ):
        agents = HttpAgents(
            stage.registrations, scene.registry, stage.bridge, stage.callbacks, HOSTS, lease_seconds=60.0
        )
        app = create_app(replace(services, http_agents=agents), ApiSettings())
        transport = ASGITransport(app=app, raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url=ADDRESS) as http:
            yield http, stage


def registration(agent: StubAgent, **more: Any) -> dict[str, Any]:
    return {"name": "words", "base_url": agent.url, "capabilities": ["words.count"]} | more


async def test_the_check_of_a_schema_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, threads = SchemaCheck.__init__, list[threading.Thread]()

    def noted(check: SchemaCheck, schema: dict[str, Any]) -> None:
        threads.append(threading.current_thread())
        prepare(check, schema)

    monkeypatch.setattr(SchemaCheck, "__init__", noted)
    with stub_agent(lambda event: success(event, 1)) as agent:
        async with open_api() as (http, stage):
            capability = {"name": "words.count", "input_schema": {"type": "object"}}
            registered = await http.post("/register", json=registration(agent, capabilities=[capability]))
            await stage.served(registered.json()["agent_id"])

    assert len(threads) > 1
    assert threading.current_thread() not in threads


async def test_an_agent_registers_beats_is_found_and_answers_later() -> None:
    with stub_agent(lambda event: Given(202)) as agent:
        async with open_api() as (http, stage):
            registered = await http.post("/register", json=registration(agent, tags=["text"]))
            agent_id = registered.json()["agent_id"]
            await stage.served(agent_id)
            beat = await http.post(f"/agents/{agent_id}/heartbeat")
            listed, shown = await http.get("/agents"), await http.get(f"/agents/{agent_id}")
            found, health = await http.get("/capabilities/search?q=COUNT"), await http.get(f"/health/{agent_id}")
            none = await http.get("/capabilities/search?q=paint")
            handle = await (await stage.scene.client()).submit("words.count", {"text": "a"})
            await eventually(lambda: agent.events)
            path = agent.events[0]["callback_url"].removeprefix("http://127.0.0.1:9")
            answer = {"request_id": agent.events[0]["event_id"], "status": "success", "result": 1}
            wrong = await http.post(path, json=answer | {"request_id": "another"})
            no_answer = await http.post(path, json={"request_id": "x", "status": "fine"})
            taken = await http.post(path, json=answer)
            value = await handle.result(timeout="10s")
            late = await http.post(path, json=answer)

    assert (registered.status_code, registered.json()["heartbeat_seconds"]) == (201, 20.0)
    assert (beat.status_code, beat.json()["status"]) == (200, "idle")
    assert [one["agent_id"] for one in listed.json()] == [agent_id]
    assert shown.json()["metadata"] == {"base_url": agent.url}
    assert [one["name"] for one in found.json()] == ["words.count"]
    assert none.json() == []
    assert health.json()["healthy"] is True
    assert (wrong.status_code, no_answer.status_code, taken.status_code, late.status_code) == (422, 422, 204, 404)
    assert value == 1


async def test_an_agent_written_to_the_contract_runs_unchanged() -> None:
    async with contract_agent() as agent, open_api() as (http, stage):
        registered = await http.post("/v1/agents", json=agent.registration)
        assert (registered.status_code, registered.json()["agent_id"]) == (201, AGENT_ID)
        await stage.served(AgentId(AGENT_ID))
        beats = [await http.post(f"{below}/agents/{AGENT_ID}/heartbeat") for below in ("", "/v1")]
        client = await stage.scene.client()

        handle = await client.submit("code.lines", {"code": "a\nb"}, priority="p0", timeout="30s")
        counted, none = await handle.result(timeout="10s"), await client.request("code.lines", timeout="10s")
        with pytest.raises(TaskRejected, match=r"\$\.limit"):
            await client.request("code.lines", {"limit": "many"}, timeout="10s")
        with pytest.raises(TaskFailed, match="does not know the action"):
            await client.request("code.forgotten", {}, timeout="10s")
        shown = (await http.get(f"/agents/{AGENT_ID}")).json()
        found = (await http.get("/capabilities/search?q=LINES")).json()

    first = agent.requests[0]
    assert [beat.status_code for beat in beats] == [200, 200]
    assert (counted, none) == ({"lines": 2}, {"lines": 0})
    assert [request.action for request in agent.requests] == ["code.lines", "code.lines", "code.forgotten"]
    assert (first.priority, first.target_agent, first.source_agent) == ("critical", AGENT_ID, client.name)
    assert (first.correlation_id, first.parameters) == (handle.task_id, {"code": "a\nb"})
    assert 1 <= first.timeout_seconds <= 30
    assert agent.requests[1].parameters == {}
    assert (shown["agent_name"], shown["name"]) == ("Code Reviewer (v2)", "code-reviewer-v2")
    assert shown["base_url"] == agent.registration["base_url"]
    assert agent.registration["metadata"].items() <= shown["metadata"].items()
    assert shown["capabilities"][0]["parameters"] == {
        "code": "string", "limit": "integer", "options": "Dict[str, Any]"
    }  # fmt: skip
    assert [(one["name"], one["cost_estimate"]) for one in found] == [("code.lines", 0.25)]


async def test_an_agent_that_went_away_is_listed_as_offline_and_a_heartbeat_brings_it_back() -> None:
    with stub_agent() as agent:
        async with open_api() as (http, stage):
            agent_id = (await http.post("/register", json=registration(agent))).json()["agent_id"]
            await stage.served(agent_id)

            def lapsed() -> bool:
                stage.registrations.extend([agent_id], -100)
                if (served := stage.bridge._served.get(agent_id)) is not None:
                    served.ends_at = 0.0
                return served is None

            await eventually(lapsed)
            await stage.stopped(agent_id)
            listed, health = await http.get("/agents"), await http.get(f"/health/{agent_id}")
            beat = await http.post(f"/agents/{agent_id}/heartbeat")
            await stage.served(agent_id)
            again = (await http.get("/agents")).json()

    (gone,) = listed.json()
    assert (gone["agent_id"], gone["status"], gone["reason"]) == (agent_id, "offline", "its heartbeats stopped")
    assert gone["last_heartbeat"] == health.json()["last_heartbeat"] is not None
    assert (health.json()["healthy"], health.json()["status"]) == (False, "offline")
    assert beat.status_code == 200
    assert [(one["agent_id"], one["status"] != "offline") for one in again] == [(agent_id, True)]


async def test_what_is_wrong_is_answered_by_problems_that_say_what_to_write() -> None:
    with stub_agent() as agent:
        async with open_api() as (http, _):
            host = await http.post("/register", json=registration(agent, base_url="http://example.org"))
            name = await http.post("/register", json=registration(agent, capabilities=["Words"]))
            field = await http.post("/register", json=registration(agent, slots="many"))
            unknown = await http.post("/agents/words-00000000/heartbeat")
            missing = [await http.get(path) for path in ("/agents/nobody", "/health/nobody")]

    assert "CODITECT_HTTP_HOSTS" in host.json()["fix"]
    assert "code.review" in name.json()["detail"]
    assert {host.status_code, name.status_code, field.status_code} == {422}
    assert (unknown.status_code, unknown.json()["fix"]) == (404, "register again: POST /register")
    assert [one.status_code for one in missing] == [404, 404]


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/register", "viewer"),
        ("POST", "/v1/agents", "viewer"),
        ("POST", "/v1/agents/words-00000000/heartbeat", "viewer"),
        ("POST", "/agents/words-00000000/heartbeat", "viewer"),
        ("GET", "/agents", None),
        ("GET", "/agents/words-00000000", None),
        ("GET", "/health/words-00000000", None),
        ("GET", "/capabilities/search", None),
    ],
)
async def test_every_route_needs_a_role(method: str, path: str, role: str | None) -> None:
    with stub_agent() as agent:
        async with open_api(access=KeyAccess()) as (http, _):
            headers = {} if role is None else {"x-role": role}
            body = registration(agent) if method == "POST" else None
            refused = await http.request(method, path, json=body, headers=headers)

    assert refused.status_code == (401 if role is None else 403)


async def test_a_callback_needs_its_token_and_nothing_else() -> None:
    async with open_api(access=KeyAccess()) as (http, stage):
        with stage.callbacks.expect("task.1", AgentId("words-00000000")) as expected:
            answer = {"request_id": "task.1", "status": "error", "error": "no"}
            taken = await http.post(f"/agent-response/{expected.token}", json=answer)
            guessed = await http.post("/agent-response/guessed", json=answer)

    assert (taken.status_code, guessed.status_code) == (204, 404)


async def test_the_schema_has_the_request_that_an_agent_gets() -> None:
    async with open_api() as (http, _):
        schema = (await http.get("/openapi.json")).json()

    callbacks = schema["paths"]["/register"]["post"]["callbacks"]["ask_http_agent"]
    posted = callbacks["{$request.body#/base_url}/agent-request"]["post"]
    assert posted["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/AgentRequestEvent")
    assert {"200", "202"} <= set(posted["responses"])
    for name in ("AgentRequestEvent", "AgentResponseEvent"):
        fields = schema["components"]["schemas"][name]["properties"].values()
        assert all("description" in field or "$ref" in field for field in fields)


def test_the_address_of_callbacks_is_the_apis_own_or_the_one_that_the_settings_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own, socket.create_server(("0.0.0.0", 0)) as anywhere:
        port = own.getsockname()[1]
        assert callback_address(HttpAgentSettings("*"), own) == f"http://127.0.0.1:{port}/agent-response"
        named = HttpAgentSettings("*", callback_url="http://api-1.example.com/")
        assert callback_address(named, anywhere) == "http://api-1.example.com/agent-response"
        assert callback_address(HttpAgentSettings(), anywhere)
        with pytest.raises(SetupError, match="CODITECT_HTTP_CALLBACK_URL"):
            callback_address(HttpAgentSettings("*"), anywhere)


def test_the_settings_of_the_bridge_have_ranges() -> None:
    assert HttpAgentSettings.read({}) == HttpAgentSettings()
    given = {
        "CODITECT_HTTP_HOSTS": "a.example.com",
        "CODITECT_PRIVATE_ADDRESSES": "http",
        "CODITECT_HTTP_LEASE_SECONDS": "5",
    }
    assert HttpAgentSettings.read(given) == HttpAgentSettings("a.example.com", True, 5.0)
    with pytest.raises(SetupError, match="outside its range"):
        HttpAgentSettings.read({"CODITECT_HTTP_LEASE_SECONDS": "0"})
