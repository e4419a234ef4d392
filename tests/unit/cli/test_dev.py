"""`coditect up`: what `--watch` refuses before it starts anything, and where the HTTP API listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from coditect import local
from coditect.aio.launch import READY_FILE, tell_ready
from coditect.api.program import access_of, listener
from coditect.cli.local import up
from coditect.cli.local.up import http_api
from coditect.errors import SetupError, install_command
from coditect.local.state import UpFolder
from coditect.local.up import API_KEY, UpPlan, process_plan
from coditect.settings.settings import ApiSettings
from coditect.testing import TestFleet
from tests.api import api_of
from tests.unit.cli.scene import Terminal


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "up", lambda *_, **__: pytest.fail("something was started"))
    return tmp_path


def test_without_an_agent_it_says_how_to_name_one(terminal: Terminal) -> None:
    refused = terminal.run("up", "--watch")

    assert refused.code == 2
    assert "coditect up --watch my_agent.py" in refused.err


def test_mistake_in_a_file_is_told_with_its_line(terminal: Terminal, folder: Path) -> None:
    (folder / "broken.py").write_text("x = 1\nnothing_of_this_name\n")

    refused = terminal.run("up", "--watch", "broken.py")

    assert refused.code != 0
    assert "broken.py:2" in refused.err


def test_without_its_extra_it_names_it(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "find_spec", lambda name: None)

    refused = terminal.run("up", "--watch", "agent.py")

    assert install_command("dev") in refused.err


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
        allowed = await http.get("/v1/agents", headers={"authorization": f"Bearer {plan.variables[API_KEY]}"})

    assert [answer.status_code for answer in refused] == [401, 401, 401]
    assert allowed.status_code == 200
