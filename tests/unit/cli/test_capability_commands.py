"""`coditect capability`: what the fleet offers, an input to try, and why no agent takes a task."""

from __future__ import annotations

import asyncio
import datetime
import enum
import json
import shlex
import uuid
from dataclasses import replace
from typing import Annotated, Any, Literal, Union

import jsonschema
import pytest
from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, create_model

from agents import deployer, doctors, documenter, guides, healer, load, publisher, reviewer, summarizer, tester
from coditect import Agent
from coditect.broker.topology import base_topology, capability_queues
from coditect.broker.topology_diff import PlannedBroker
from coditect.cli.capability import Example
from coditect.codec import BYTES, codec
from coditect.model.capability import CapabilitySpec, Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import Message
from coditect.model.registration import Load, Registration
from coditect.model.task import Task
from coditect.wire import routing, tasks
from tests.unit.cli.scene import AGENT, Terminal


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
    ran = fleet.run("capability", "list")
    old = fleet.run("capability", "list", "--tag", "1.0.0", "--output", "json").json

    assert [row.split()[:2] for row in ran.out.splitlines()[1:]] == [["code.review", "2"], ["parcel.send", "1"]]
    assert "Reads code." in ran.out
    assert [(spec["name"], spec["agents"]) for spec in old] == [("code.review", ["old-1"])]


def test_show_gives_a_task_to_try_that_fits_the_schema(fleet: Terminal) -> None:
    ran = fleet.run("capability", "get", "code.review")
    document = fleet.run("capability", "get", "code.review", "--output", "json").json

    command = shlex.split(ran.out.splitlines()[-1].removeprefix("try"))
    jsonschema.validate(json.loads(command[4]), document["input_schema"])
    assert command[:4] == ["coditect", "task", "submit", "code.review"]
    assert command[-1] == "--detach"  # it runs for an hour
    assert document["example"] == {"path": "text", "depth": 2}
    assert document["versions"] == ["1.0.0", "2.0.0"]
    assert '"minimum": 2' in ran.out


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

    ran = terminal.run("capability", "get", "photo.pack")

    assert ran.out.splitlines()[-1].endswith("coditect task submit photo.pack @file --bytes")


def test_show_says_what_it_cannot_guess(fleet: Terminal) -> None:
    assert "body.code: a text that matches ^[a-f]{7}$" in fleet.run("capability", "get", "parcel.send").err


def test_show_of_an_unknown_name_exits_4_with_the_nearest(fleet: Terminal) -> None:
    ran = fleet.run("capability", "get", "code.reviews")

    assert ran.code == 4
    assert "nearest: code.review" in ran.err


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Gt(8), Lt(10)]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Tree(BaseModel):
    name: str
    parent: Tree | None
    children: list[Tree]


def example_is_taken(kind: Any) -> Any:
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    example = Example(schema)
    jsonschema.validate(example.body, schema)
    adapter.validate_json(json.dumps(example.body))
    assert example.unsure == []
    return example.body


def numbers(kind: type) -> st.SearchStrategy[Any]:
    return st.integers(-1_000, 1_000).flatmap(
        lambda low: st.sampled_from([
            Annotated[kind, Ge(low), Le(low + 3)],
            Annotated[kind, Gt(low), Lt(low + 2)],
            Annotated[kind, Le(low)],
            Annotated[kind, Gt(low), MultipleOf(7)],
        ])
    )  # fmt: skip


texts = st.builds(lambda least, more: Annotated[str, Len(least, least + more)], st.integers(0, 30), st.integers(0, 10))
plain = st.sampled_from([
    str, int, float, bool, None, Any, Colour, Literal["a", 2], datetime.datetime, datetime.date, datetime.time,
    datetime.timedelta, uuid.UUID, Tree, Annotated[Cat | Dog, Field(discriminator="kind")], Dog,
    Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")], Annotated[str, StringConstraints(pattern=r"^\d+\.\d+")],
])  # fmt: skip


def composed(kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    fields = st.dictionaries(st.sampled_from("abcd"), st.tuples(kinds, st.booleans()), max_size=4)
    return st.one_of(
        st.builds(lambda kind, least: Annotated[list[kind], Len(least)], kinds, st.integers(0, 3)),  # type: ignore[valid-type]
        st.builds(lambda kind, least: Annotated[dict[str, kind], Len(least)], kinds, st.integers(0, 3)),  # type: ignore[valid-type]
        st.builds(lambda one, two: tuple[one, two], kinds, kinds),  # type: ignore[valid-type]
        st.builds(lambda one: Union[one, None, int], kinds),  # noqa: UP007 - not every value here knows `|`
        st.sampled_from([Annotated[set[int], Len(3)], Annotated[frozenset[str], Len(2)], set[Colour]]),
        st.builds(
            lambda given: create_model(  # type: ignore[call-overload]
                "Made", **{name: (kind, Field(...) if required else None) for name, (kind, required) in given.items()}
            ),
            fields,
        ),
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(plain | texts | numbers(int) | numbers(float), composed, max_leaves=6))
def test_example_of_any_type_is_valid_input_for_it(kind: Any) -> None:
    example_is_taken(kind)


def test_example_has_the_required_fields_and_the_authors_own_values() -> None:
    class Review(BaseModel):
        path: Annotated[str, Field(examples=["src"])]
        depth: Annotated[int, Ge(2)]
        note: str = ""

    assert example_is_taken(Review) == {"path": "src", "depth": 2}


def test_what_requires_itself_is_shown_once() -> None:
    assert example_is_taken(Tree) == {"name": "text", "parent": None, "children": []}


@pytest.mark.parametrize("pattern", [r"^[a-f]{7}$", r"^\p{L}(?<=x)", "^(a+)+b$"])
def test_text_that_cannot_be_made_is_named_with_its_pattern(pattern: str) -> None:
    field = {"type": "string", "pattern": pattern, "minLength": 30}
    example = Example({"type": "object", "required": ["sku"], "properties": {"sku": field}})

    assert example.unsure == [f"body.sku: a text that matches {pattern}"]


CAPABILITY = "code.review"
TASK = "01890a5d-ac96-774b-bcce-b302099a8057"
QUEUES = base_topology() + capability_queues(CAPABILITY)


def publish(terminal: Terminal, *messages: Message, exchange: str) -> None:
    async def send(broker: PlannedBroker) -> None:
        await broker.declare(QUEUES)
        for message in messages:
            await broker.publish(message, exchange=exchange, routing_key=f"{CAPABILITY}.p1")

    terminal.broker(send)


def task(task_id: str = TASK) -> Message:
    return tasks.task_message(Task(CAPABILITY, Priority.P1, b"{}", id=TaskId(task_id)))


def waiting_ids(terminal: Terminal, queue: str) -> Any:
    async def look(broker: PlannedBroker) -> list[str | None]:
        found = []
        while (delivery := await broker.get(queue)) is not None:
            found.append(delivery.message.message_id)
        await broker.release()
        return found

    return terminal.broker(look)


def test_capability_is_explained_with_agents_and_queues(terminal: Terminal) -> None:
    terminal.register()
    publish(terminal, task("a"), task("b"), exchange=routing.TASKS)

    ran = terminal.run("capability", "get", CAPABILITY, "--why-not")
    document = terminal.run("capability", "get", CAPABILITY, "--why-not", "--output", "json").json

    explained = document["explanation"]
    assert ran.code == 0
    assert ran.out.startswith(f"{AGENT} has a free slot, but no agent consumes")
    assert "Fix: " in ran.out
    assert "tasks.code.review.p1  2        0" in ran.out
    assert (explained["question"]["priority"], explained["question"]["tags"]) == ("p1", [])
    assert explained["agents"][0]["obstacle"] == "not_consumed"
    assert [queue["messages"] for queue in explained["queues"]] == [0, 2, 0]
    assert (document["task_id"], document["found"]) == (None, None)


def test_tags_and_priority_are_asked_for(terminal: Terminal) -> None:
    terminal.declare(QUEUES)
    terminal.register()

    document = terminal.run(
        "capability", "get", CAPABILITY, "--why-not", "-p", "p0", "--tag", "python", "--tag", "gpu", "-o", "json"
    ).json

    explained = document["explanation"]
    assert (explained["question"]["priority"], explained["question"]["tags"]) == ("p0", ["gpu", "python"])
    assert explained["agents"][0]["obstacle"] is None
    assert "it lacks gpu, so agents with that are preferred" in explained["agents"][0]["text"]


def test_unknown_capability_exits_4_with_the_nearest(terminal: Terminal) -> None:
    terminal.register()

    ran = terminal.run("capability", "get", "code.revew", "--why-not")
    document = terminal.run("capability", "get", "code.revew", "--why-not", "--output", "json")

    assert (ran.code, document.code) == (4, 4)
    assert "did you mean code.review?" in ran.out
    assert document.json["explanation"]["nearest"] == [CAPABILITY]


def test_registry_that_does_not_answer_leaves_the_broker_s_word(terminal: Terminal) -> None:
    terminal.declare(QUEUES)
    terminal.connections.directory.failing = True

    ran = terminal.run("capability", "get", CAPABILITY, "--why-not")

    assert ran.code == 0
    assert "The registry does not answer" in ran.out


@pytest.mark.parametrize(
    ("exchange", "place", "queue"),
    [
        (routing.TASKS, "waiting", "tasks.code.review.p1"),
        (routing.retry_exchange(60_000), "retrying", "retry.after.60000"),
        (routing.DEAD, "dead", "dead.code.review"),
        (routing.UNROUTED, "unrouted", "unrouted"),
    ],
)
def test_task_is_found_where_it_lies_and_stays_there(terminal: Terminal, exchange: str, place: str, queue: str) -> None:
    publish(terminal, task("other"), task(), task("third"), exchange=exchange)

    ran = terminal.run("task", "get", TASK, "--why-not", "--capability", CAPABILITY)
    document = terminal.run("task", "get", TASK, "--why-not", "-c", CAPABILITY, "--output", "json")

    assert (ran.code, document.code) == (0, 0)
    (seen,) = document.json["found"]["locations"]
    assert (seen["place"], seen["queue"], seen["before"]) == (place, queue, 1)
    assert f"Seen: {place} {queue}" in ran.out
    assert waiting_ids(terminal, queue) == ["other", TASK, "third"]


def test_task_that_is_nowhere_exits_4_and_says_what_cannot_be_known(terminal: Terminal) -> None:
    terminal.declare(QUEUES)

    ran = terminal.run("task", "get", TASK, "--why-not")
    document = terminal.run("task", "get", TASK, "--why-not", "--output", "json")

    assert (ran.code, document.code) == (4, 4)
    assert "name its capability with --capability" in ran.out
    assert "only who submitted it learns how" in ran.out
    assert document.json["unseen"]


def test_queue_is_looked_through_only_so_far(terminal: Terminal) -> None:
    publish(terminal, *(task(f"t{number}") for number in range(5)), task(), exchange=routing.TASKS)

    short = terminal.run("task", "get", TASK, "--why-not", "-c", CAPABILITY, "--limit", "5", "--output", "json")
    enough = terminal.run("task", "get", TASK, "--why-not", "-c", CAPABILITY, "--limit", "6", "--output", "json")

    assert (short.code, short.json["found"]["cut"]) == (4, ["tasks.code.review.p1"])
    assert (enough.code, enough.json["found"]["locations"][0]["before"]) == (0, 5)


def test_foreign_id_is_looked_for(terminal: Terminal) -> None:
    publish(terminal, task("order-7"), exchange=routing.TASKS)

    assert terminal.run("task", "get", "order-7", "--why-not", "-c", CAPABILITY).code == 0
