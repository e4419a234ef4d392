"""What the fleet offers, as a person asks for it."""

from __future__ import annotations

import asyncio
import json
import shlex
from dataclasses import replace
from typing import Annotated

import jsonschema
import pytest
from pydantic import BaseModel, Field

from agents import deployer, doctors, documenter, guides, healer, load, publisher, reviewer, summarizer, tester
from coditect import Agent
from coditect.cli.capability import Example
from coditect.codec import BYTES, codec
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.registration import Load, Registration
from tests.unit.cli.scene import Terminal


class Order(BaseModel):
    path: str
    depth: Annotated[int, Field(ge=2)]
    note: str = ""


class Parcel(BaseModel):
    code: Annotated[str, Field(pattern="^[a-f]{7}$")]


@pytest.fixture
def fleet(terminal: Terminal) -> Terminal:
    """Two agents with different versions of one capability."""
    asyncio.run(_register(terminal, "old-1", "1.0.0", 1_000, CapabilitySpec("code.review", "Was.")))
    spec = CapabilitySpec("code.review", "Reads code.", codec(Order).schema, codec(str).schema, timeout_seconds=3_600)
    parcel = CapabilitySpec("parcel.send", input_schema=codec(Parcel).schema)
    asyncio.run(_register(terminal, "new-1", "2.0.0", 2_000, spec, parcel))
    return terminal


async def _register(terminal: Terminal, agent: str, version: str, started: int, *specs: CapabilitySpec) -> None:
    known = Registration(AgentId(agent), "reviewer", version, 8, specs)
    await terminal.connections.directory.register(
        replace(known, started_at_ms=started, tags=frozenset({version})), Load(), lease_seconds=60
    )


def test_list_has_each_capability_once_with_its_agents(fleet: Terminal) -> None:
    told = fleet.run("capability", "list")
    one = fleet.run("capability", "list", "--tag", "1.0.0", "--output", "json").json

    assert [row.split()[:2] for row in told.out.splitlines()[1:]] == [["code.review", "2"], ["parcel.send", "1"]]
    assert "Reads code." in told.out
    assert [(spec["name"], spec["agents"]) for spec in one] == [("code.review", ["old-1"])]


def test_show_gives_a_task_to_try_that_fits_the_schema(fleet: Terminal) -> None:
    told = fleet.run("capability", "get", "code.review")
    document = fleet.run("capability", "get", "code.review", "--output", "json").json

    command = shlex.split(told.out.splitlines()[-1].removeprefix("try"))
    jsonschema.validate(json.loads(command[4]), document["input_schema"])
    assert command[:4] == ["coditect", "task", "submit", "code.review"]
    assert command[-1] == "--detach"  # it runs for an hour
    assert document["example"] == {"path": "text", "depth": 2}
    assert document["versions"] == ["1.0.0", "2.0.0"]
    assert '"minimum": 2' in told.out


REFERENCE_AGENTS = [
    agent
    for module in (deployer, doctors, documenter, guides, healer, load, publisher, reviewer, summarizer, tester)
    for agent in vars(module).values()
    if isinstance(agent, Agent)
]


@pytest.mark.parametrize("agent", REFERENCE_AGENTS, ids=lambda agent: agent.name)
def test_task_to_try_fits_each_capability_of_the_reference_agents(agent: Agent) -> None:
    for capability in agent.capabilities:
        example = Example(capability.spec.input_schema)
        assert example.unsure == []
        capability.signature.input.decode(json.dumps(example.body).encode())


def test_show_gives_a_file_to_try_where_the_input_is_bytes(terminal: Terminal) -> None:
    asyncio.run(_register(terminal, "zip-1", "1.0.0", 1_000, CapabilitySpec("photo.pack", input_schema=BYTES.schema)))

    told = terminal.run("capability", "get", "photo.pack")

    assert told.out.splitlines()[-1].endswith("coditect task submit photo.pack @file --bytes")


def test_show_says_what_it_cannot_guess(fleet: Terminal) -> None:
    assert "body.code: a text that matches ^[a-f]{7}$" in fleet.run("capability", "get", "parcel.send").err


def test_show_of_an_unknown_name_exits_4_with_the_nearest(fleet: Terminal) -> None:
    ran = fleet.run("capability", "get", "code.reviews")

    assert ran.code == 4
    assert "nearest: code.review" in ran.err
