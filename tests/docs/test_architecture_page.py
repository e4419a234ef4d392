"""The drawing of the house beside import-linter's layers, and the C4 diagrams beside what the command draws."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from coditect import Agent, Context, Retry, Workflow
from coditect.broker.memory import MemoryBroker
from coditect.broker.topology import topology_by_declarer
from coditect.cli.main import app
from coditect.errors import TaskFailed
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.operations.diagrams import PUBLISHERS, RETRY
from coditect.testing import TestFleet
from coditect.wire import routing
from tests.servers import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
CONTRACTS = TOOLS["importlinter"]["contracts"]
LEVELS = ("context", "containers", "components")


def drawn(package: str, until: str) -> list[list[str]]:
    """The names of each line of a package's part of the drawing."""
    part = PAGE.split(f"\n{package}/ ", 1)[1].split(f"\n{until}/", 1)[0]
    return [re.findall(r"(?:^  |  |, )([a-z_]+)(?:/|\.py)(?=[ ,])", line) for line in part.splitlines()[1:]]


def test_every_package_is_drawn_above_those_that_it_imports() -> None:
    for package, until in (("coditect", "dispatcher"), ("dispatcher", "agents")):
        (layers,) = (one["layers"] for one in CONTRACTS if one.get("containers") == [package])
        rank = {name: -number for number, layer in enumerate(layers) for name in layer.split(" : ")}
        del rank["__main__"]
        ranks = [[rank[name] for name in line if name in rank] for line in drawn(package, until)]

        assert {name for line in drawn(package, until) for name in line} >= rank.keys()
        lines = [line for line in ranks if line]
        assert all(max(low) <= min(high) for low, high in pairwise(lines)), lines


def test_the_c4_diagrams_are_what_the_command_draws_of_the_reference_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    ran = CliRunner().invoke(app, ["topology", "export", *TOOLS["coditect"]["fleet"], "--diagrams", str(tmp_path)])

    assert ran.exit_code == 0, ran.output
    for level in LEVELS:
        kept = (ROOT / "docs" / "diagrams" / f"{level}.mmd").read_text(encoding="utf-8")
        assert kept == (tmp_path / f"{level}.mmd").read_text(encoding="utf-8"), "run `make diagrams`"


async def test_what_the_processes_of_a_fleet_publish_is_in_the_diagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal by a trigger, a retry, a dead letter and a task that the broker gives up are among it."""
    published, publish = set[tuple[str, str]](), MemoryBroker.publish
    kinds = {"dispatcher": "dispatcher", "worker": "agent", "test": "client"}

    async def record(broker: MemoryBroker, message: Message, *, exchange: str, **how: Any) -> None:
        if (kind := kinds.get(broker.name.split("-")[0])) is not None and exchange:
            published.add((kind, re.sub(r"\.after\.\d+", ".after.<delay>", exchange)))
        await publish(broker, message, exchange=exchange, **how)

    monkeypatch.setattr(MemoryBroker, "publish", record)
    flow = Workflow("paid")
    flow.task("work.lost", 1, after=[flow.signal("paid", name="told")])
    async with TestFleet(agents=[restless()]) as fleet:
        with pytest.raises(TaskFailed):
            await fleet.client.request("work.ask", 1)
        run = await fleet.client.start(flow)
        await fleet.client.triggers.create("paid", "order.paid", None, 1, signal="paid", to="event.subject")
        fleet.kill("worker")
        await fleet.client.emit("order.paid", subject=run.id)
        await fleet.settled()
        async with MemoryBroker(fleet.server, name="thief") as broker:
            delivery = await broker.get(routing.task_queue("work.lost", Priority.P1))
            assert delivery is not None
            delivery.reject()
        await run.wait()
        await fleet.advance("5s")  # until the dispatcher asks the killed agent whether it lives

    drawn = {(process, exchange) for exchange, processes in PUBLISHERS.items() for process in processes}
    assert published <= drawn
    foreign = {exchange for exchange, processes in PUBLISHERS.items() if "program" in processes}
    assert {exchange for _, exchange in published} | foreign == {exchange for _, exchange in drawn}


def restless() -> Agent:
    agent = Agent("worker")

    @agent.capability("work.ask")
    async def ask(task: int, ctx: Context) -> None:
        await ctx.request("work.fail", task)

    @agent.capability("work.fail", retry=Retry(max_attempts=2, first="1s"))
    async def fail(task: int, ctx: Context) -> None:
        await ctx.emit("work.began")
        raise OSError("it fails")

    @agent.capability("work.lost")
    async def lose(task: int) -> None:
        raise AssertionError("the broker gives it up")

    return agent


def test_every_exchange_has_its_publishers_in_the_diagrams() -> None:
    declared = [one.name for part in topology_by_declarer(slots=1, shard=0).values() for one in part.exchanges]

    assert {re.sub(r"\.after\.\d+", ".after.<delay>", name) for name in declared} == PUBLISHERS.keys()
    assert RETRY in PUBLISHERS
