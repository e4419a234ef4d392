"""The scorecard on the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from coditect.aio.supervisor import Supervisor
from coditect.broker.topology import base_topology, capability_queues
from coditect.broker.topology_diff import PlannedBroker
from coditect.cli.compose import RealConnections
from coditect.cli.doctor import _connect
from coditect.collaboration.locks import Lock
from coditect.errors import ResultTimeout, SetupError
from coditect.local import prove
from coditect.local.private import PrivateProcesses
from coditect.local.prove import prove_targets
from coditect.local.up import Program
from coditect.model.message import Message
from coditect.operations import scorecard
from coditect.operations.scorecard import TARGETS
from coditect.settings.settings import DEFAULTS, Settings
from coditect.testing import TestFleet
from coditect.wire import routing
from tests.unit.cli.scene import Terminal

SERVERS = {"CODITECT_AMQP_URL": "amqp://127.0.0.1:1/", "CODITECT_REDIS_URL": "redis://127.0.0.1:2/0"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorecard, "WATCH_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("coditect.operations.locate.PING_ANSWER_SECONDS", 0.05)


def test_targets_without_data_are_unknown_and_no_failure(terminal: Terminal) -> None:
    ran = terminal.run("doctor", "--scorecard", "--output", "json")
    table = terminal.run("doctor", "--scorecard")

    assert ran.code == table.code == 0
    assert [row["name"] for row in ran.json["rows"]] == list(TARGETS)
    assert {row["verdict"] for row in ran.json["rows"]} == {"unknown"}
    assert "autonomy             ≥ 95 %" in table.out


def test_a_missed_target_exits_1(terminal: Terminal) -> None:
    async def filled(broker: PlannedBroker) -> None:
        await broker.declare(base_topology() + capability_queues("code.review"))
        await broker.publish(Message(body=b"{}"), exchange=routing.SUBMIT, routing_key="code.review.p1")

    terminal.register()
    terminal.broker(filled)

    ran = terminal.run("doctor", "--scorecard", "--output", "json")

    assert ran.code == 1
    assert [row["name"] for row in ran.json["rows"] if row["verdict"] == "fail"] == ["agent to agent", "throughput"]


def test_a_proof_has_its_fleet_s_settings_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODITECT_REPLY_QUEUE", "quorum")
    monkeypatch.setenv("CODITECT_BLOB_URL", "file:/elsewhere")
    for name, address in SERVERS.items():
        monkeypatch.setenv(name, address + "elsewhere")

    opened = _connect(tmp_path, SERVERS)

    assert isinstance(opened, RealConnections)
    settings = opened._settings
    assert (settings.reply_queue, settings.blob_url) == (DEFAULTS.reply_queue, DEFAULTS.blob_url)
    assert [settings.amqp_url, settings.redis_url] == list(SERVERS.values())


async def test_a_proof_that_takes_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def never_ready(*_: object) -> AsyncIterator[None]:
        await asyncio.sleep(3600)
        yield

    monkeypatch.setattr(prove, "LONGEST_SECONDS", 0.01)
    monkeypatch.setattr(prove, "_private_fleet", never_ready)
    plane = Program("dispatcher", ("true",))

    with pytest.raises(ResultTimeout, match="took too long"):
        await prove_targets(
            (plane,), folder=tmp_path, environ={}, connect=lambda _: RealConnections(Settings()), say=print
        )


@asynccontextmanager
async def proof_of(fleet: TestFleet) -> AsyncIterator[prove._Proof]:
    async with Supervisor() as background:
        yield prove._Proof(fleet.client, cast(PrivateProcesses, None), background, print)


async def test_a_task_that_is_not_answered_in_time_is_a_submit_that_was_not_served() -> None:
    async with TestFleet([prove.worker]) as fleet, proof_of(fleet) as proof:
        await proof._answer(await proof._submit(10))
        fleet.pause("worker")
        await proof._answer(await proof._submit(10))
        fleet.resume("worker")

        assert proof.served().value == 50


@pytest.mark.parametrize(("fence", "collisions"), [(None, 0), (7, 98)])
async def test_a_fence_that_does_not_rise_is_a_collision(
    monkeypatch: pytest.MonkeyPatch, fence: int | None, collisions: float
) -> None:
    if fence is not None:
        monkeypatch.setattr(Lock, "fence", fence)
    async with TestFleet() as fleet, proof_of(fleet) as proof:
        assert (await proof.at_locks()).value == collisions


async def test_a_proof_without_a_control_plane_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="needs a control plane"):
        await prove_targets((), folder=tmp_path, environ={}, connect=lambda _: RealConnections(Settings()), say=print)
