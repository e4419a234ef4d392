"""`coditect doctor` with `--scorecard`, `--health` and `--rebuild`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest

from coditect.agent.health import health_server
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
from coditect.wire.control import Verb
from tests.control_plane import SHARDS
from tests.unit.cli.scene import Ran, Terminal

SERVERS = {"CODITECT_AMQP_URL": "amqp://127.0.0.1:1/", "CODITECT_REDIS_URL": "redis://127.0.0.1:2/0"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorecard, "WATCH_PAUSE_SECONDS", 0.01)


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


async def health_of(
    terminal: Terminal, *words: str, wrong: str = "", environment: pytest.MonkeyPatch | None = None
) -> Ran:
    """What `doctor --health` says of a program that has this trouble; an option or the environment names its port."""
    async with health_server(lambda: wrong, host="127.0.0.1", port=0) as port:
        if environment is not None:
            environment.setenv("CODITECT_HEALTH_PORT", str(port))
            return await asyncio.to_thread(terminal.run, "doctor", "--health", *words)
        return await asyncio.to_thread(terminal.run, "doctor", "--health", "--port", str(port), *words)


@pytest.mark.parametrize(
    ("wrong", "code", "detail"), [("", 0, "ready"), ("no connection to the broker", 1, "no connection to the broker")]
)
async def test_a_program_that_takes_work_is_healthy_and_another_says_why_not(
    terminal: Terminal, wrong: str, code: int, detail: str
) -> None:
    ran = await health_of(terminal, wrong=wrong)
    document = await health_of(terminal, "--output", "json", wrong=wrong)

    assert (ran.code, ran.out) == (code, f"{detail}\n")
    assert (document.code, document.json) == (code, {"ready": not wrong, "detail": detail})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_port_is_found_where_the_program_finds_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("CODITECT_HEALTH_HOST", host)

    assert (await health_of(terminal, environment=monkeypatch)).code == 0


def test_without_a_port_the_error_names_the_variable(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODITECT_HEALTH_PORT", raising=False)

    ran = terminal.run("doctor", "--health")

    assert ran.code == 1
    assert "CODITECT_HEALTH_PORT" in ran.err


def test_port_where_nothing_listens_is_not_healthy(terminal: Terminal) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        ran = terminal.run("doctor", "--health", "--port", str(nobody.getsockname()[1]))

    assert ran.code == 1
    assert "Nothing answers at the health port" in ran.err


def test_every_shard_is_rebuilt_and_what_it_made_is_summed_up(served: Terminal) -> None:
    document = served.run("doctor", "--rebuild", "--output", "json")

    counts = {"queues": 12, "published": 6, "working": 4, "workflows": 8, "jobs": 0}
    assert document.json == {"shards": SHARDS, **counts, "compared": True}
    asked = [body for verb, body in served.connections.plane.asked if verb is Verb.REBUILD]
    assert [body["shard"] for body in asked] == list(range(SHARDS))
    assert len({body["occasion"] for body in asked}) == 1


def test_table_says_what_each_kind_is(served: Terminal) -> None:
    ran = served.run("doctor", "--rebuild")

    assert ran.code == 0
    assert "published again" in ran.out
    assert "4 shards" in ran.err


def test_counts_that_may_be_too_small_are_told_as_such(served: Terminal) -> None:
    served.connections.plane.compared = False

    table, document = served.run("doctor", "--rebuild"), served.run("doctor", "--rebuild", "--output", "json")

    assert "more of its jobs may have been made" in table.err
    assert document.json["compared"] is False
