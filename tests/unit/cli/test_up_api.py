"""Where the HTTP API of `coditect up` listens, and how its address is known."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from coditect.aio.launch import READY_FILE, tell_ready
from coditect.api.program import access_of, listener
from coditect.cli.local.up import http_api
from coditect.errors import SetupError
from coditect.local.state import UpFolder
from coditect.local.up import UpPlan, process_plan
from coditect.settings.settings import ApiSettings
from coditect.testing import TestFleet
from tests.api import api_of


def test_port_of_the_environment_is_taken_and_no_other() -> None:
    (named,), (usual,) = http_api({"CODITECT_API_PORT": "18009"}), http_api({})

    assert "--any-port" not in named.argv
    assert "--any-port" in usual.argv
    assert named.announces_ready


def test_another_port_is_taken_when_the_port_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match="cannot listen"):
            listener("127.0.0.1", port)
        with listener("127.0.0.1", port, or_any=True) as other:
            assert other.getsockname()[1] != port


def test_address_is_known_from_the_ready_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = UpFolder(tmp_path)
    folder.run.mkdir()
    before = folder.address_of("api")
    monkeypatch.setenv(READY_FILE, str(folder.ready_file("api")))
    tell_ready(address="http://127.0.0.1:8009")

    assert (before, folder.address_of("api")) == (None, "http://127.0.0.1:8009")


async def test_api_that_up_starts_refuses_a_request_without_its_key(tmp_path: Path) -> None:
    plan = process_plan(UpPlan(tmp_path, tmp_path, tuple(http_api({})), "amqp://a", "redis://r"), environ={})
    settings = ApiSettings.read(plan.children[-1].env)
    task = {"capability": "text.count", "input": "four"}
    async with TestFleet() as fleet, api_of(fleet, access=access_of(settings), settings=settings) as http:
        refused = [await http.get("/v1/agents"), await http.post("/v1/tasks", json=task)]
        refused.append(await http.post("/v1/approvals/flow:gate/grant", json={"by": "ada"}))
        allowed = await http.get("/v1/agents", headers={"authorization": f"Bearer {plan.api_key}"})

    assert [answer.status_code for answer in refused] == [401, 401, 401]
    assert allowed.status_code == 200
