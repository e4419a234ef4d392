"""Patterns over HTTP: listed, shown, rendered, and started."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from httpx2 import ASGITransport, AsyncClient

from coditect.api.application import create_app
from coditect.api.connections import SharedConnections
from coditect.api.routes.workflows import FOLDERS
from coditect.settings.settings import ApiSettings
from coditect.testing import TestFleet
from tests.api import ADDRESS, services_of

OWN = """
pattern: twice
description: Count a text two times
parameters: {counter: {type: capability}}
nodes:
  first: {task: {$param: counter}, input: {$from: input}}
"""
ESCALATION = {"parameters": {"first": "text.count", "better": "text.count", "merge": "text.count"}}


async def test_a_pattern_is_listed_shown_and_rendered(api: AsyncClient) -> None:
    listed = (await api.get("/v1/patterns")).json()
    shown = (await api.get("/v1/patterns/escalation")).json()
    rendered = await api.post("/v1/patterns/escalation/render", json=ESCALATION)
    checked = await api.post("/v1/workflows/check", json={"workflow": rendered.json()})
    unknown = await api.get("/v1/patterns/nothing")
    missing = await api.post("/v1/patterns/escalation/render", json={})

    assert "escalation" in [one["pattern"] for one in listed]
    assert shown["parameters"]["first"]["type"] == "capability"
    assert (rendered.status_code, checked.status_code) == (200, 200)
    assert (unknown.status_code, missing.status_code) == (404, 422)
    assert any("first" in problem for problem in missing.json()["facts"]["problems"])


async def test_a_pattern_is_started_once_for_a_key(api: AsyncClient) -> None:
    headers = {"idempotency-key": "mine"}
    order: dict[str, Any] = ESCALATION | {"input": "four"}
    started = await api.post("/v1/patterns/escalation/start", json=order, headers=headers)
    again = await api.post("/v1/patterns/escalation/start", json=order, headers=headers)
    other = await api.post("/v1/patterns/escalation/start", json=order | {"input": "five!"}, headers=headers)
    shown = (await api.get(started.headers["location"])).json()

    assert (started.status_code, again.status_code, other.status_code) == (201, 200, 422)
    assert again.json()["id"] == started.json()["id"]
    assert (shown["name"], shown["total"]) == ("escalation", 3)


async def test_patterns_of_the_named_folders_are_among_them(fleet: TestFleet, tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(OWN)
    async with services_of(fleet.server, fleet.registry, fleet.client) as services:
        assert isinstance(services.opened, SharedConnections)
        services.opened._environ = {FOLDERS: f"{tmp_path}{os.pathsep}"}
        app = create_app(replace(services), ApiSettings())
        async with AsyncClient(transport=ASGITransport(app), base_url=ADDRESS) as http:
            shown = await http.get("/v1/patterns/twice")

    assert shown.json()["description"] == "Count a text two times"
