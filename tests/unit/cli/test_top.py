"""The whole fleet on one screen."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from coditect.broker.management import ManagementUnavailable, QueueRates
from coditect.broker.topology import base_topology, capability_queues
from coditect.broker.topology_diff import PlannedBroker
from coditect.model.message import Message
from coditect.operations import overview
from coditect.wire import routing
from tests.unit.cli.scene import AGENT, Terminal

RUNS = {"task_id": "task-1", "capability": "code.review", "priority": "p0", "attempt": 2, "published_at_ms": 1}
OPEN = {"name": "github", "open": True, "version": 3, "retry_ms": None, "reason": "500", "by": "reviewer"}


@pytest.fixture
def busy(served: Terminal, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """An agent that runs something, a queue with two tasks, a dead letter, an open breaker, and a control plane."""

    async def filled(broker: PlannedBroker) -> None:
        await broker.declare(base_topology() + capability_queues("code.review"))
        for _ in range(2):
            await broker.publish(Message(body=b"{}"), exchange=routing.SUBMIT, routing_key="code.review.p1")
        await broker.publish(Message(body=b"{}"), exchange=routing.DEAD, routing_key="code.review")

    async def answered(*_: object, **__: object) -> list[dict[str, Any]]:
        return [{"agent_id": AGENT, "tasks": [RUNS, "nonsense", {"attempt": "x"}]}]

    served.register()
    served.broker(filled)
    served.connections.plane.breakers = [{**OPEN, "due_ms": None, "reset_ms": 1000}, {**OPEN, "open": False}]
    served.connections.plane.breakers[1] |= {"name": "closed", "due_ms": None, "reset_ms": 1000}
    served.connections.rates = {"tasks.code.review.p1": QueueRates(1.5, 0.5, 1_000)}
    monkeypatch.setattr(overview, "ask_agents", answered)
    return served


def test_once_tells_everything_as_a_document(busy: Terminal) -> None:
    ran = busy.run("top", "--once", "--output", "json")

    (agent,), (queue,) = ran.json["agents"], ran.json["queues"]
    levels = {level["priority"]: level for level in queue["levels"]}
    assert ran.code == 0
    assert (agent["agent_id"], agent["slots"], agent["running"]) == (AGENT, 8, 3)
    assert agent["tasks"] == [RUNS | {"workflow": None}]
    assert [levels[level]["messages"] for level in ("p0", "p1", "p2")] == [0, 2, 0]
    assert (levels["p1"]["published_per_second"], levels["p1"]["oldest_ms"]) == (1.5, 1_000)
    assert levels["p0"]["published_per_second"] is None
    assert queue["dead"] == 1
    assert [breaker["state"]["name"] for breaker in ran.json["breakers"]] == ["github"]
    assert len(ran.json["cluster"]["dispatchers"]) == 3
    assert ran.json["notes"] == []
    assert yaml.safe_load(busy.run("top", "--once", "-o", "yaml").out)["agents"] == [agent]


def test_once_draws_a_screen(busy: Terminal) -> None:
    ran = busy.run("top", "--once")

    lines = ran.out.splitlines()
    assert lines[0].startswith("1 agents, 3 of 8 slots busy; 2 tasks wait; 0 workflows run; 1 breakers open; 1 dead")
    assert any(line.startswith(AGENT) and "3/8" in line and "code.review" in line for line in lines)
    assert any(line.split()[:4] == ["code.review", "p1", "2", "0"] for line in lines)
    assert any(line.startswith("github") for line in lines)
    assert "OPEN BREAKER" in ran.out
    assert "\x1b" not in ran.out


def test_running_workflows_have_their_progress(served: Terminal, started: str) -> None:
    served.connections.plane.kept[started].state = "running"

    ran = served.run("top", "--once")
    document = served.run("top", "--once", "-o", "json").json

    assert started in ran.out
    assert "0/3 0%" in ran.out
    assert [row["workflow"] for row in document["workflows"]] == [started]


def test_what_is_not_there_is_a_note_and_no_error(terminal: Terminal) -> None:
    terminal.register()
    terminal.connections.rates = ManagementUnavailable("It does not answer")

    ran = terminal.run("top", "--once", "--output", "json")

    assert ran.code == 0
    assert (ran.json["agents"][0]["tasks"], ran.json["cluster"]) == (None, None)
    assert ran.json["notes"] == ran.err.splitlines()
    assert [note.split()[0] for note in ran.json["notes"]] == ["1", "Rates", "No"]


def test_without_a_registry_the_rest_is_told(served: Terminal) -> None:
    served.connections.directory.failing = True

    ran = served.run("top", "--once", "--output", "json")

    assert (ran.code, ran.json["agents"]) == (0, [])
    assert len(ran.json["cluster"]["dispatchers"]) == 3
    assert "The registry does not answer" in ran.err
