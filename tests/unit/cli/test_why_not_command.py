from __future__ import annotations

from typing import Any

import pytest

from coditect.broker.port import Broker
from coditect.broker.topology import base_topology, capability_queues
from coditect.model.capability import Priority
from coditect.model.ids import TaskId
from coditect.model.message import Message
from coditect.model.task import Task
from coditect.wire import routing, tasks
from tests.unit.cli.scene import AGENT, Terminal

CAPABILITY = "code.review"
TASK = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture(autouse=True)
def quick_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coditect.operations.locate.PING_ANSWER_SECONDS", 0.05)


def prepare(terminal: Terminal) -> None:
    async def declare(broker: Broker) -> None:
        await broker.declare(base_topology() + capability_queues(CAPABILITY))

    terminal.broker(declare)


def publish(terminal: Terminal, *messages: Message, exchange: str, key: str = f"{CAPABILITY}.p1") -> None:
    async def send(broker: Broker) -> None:
        for message in messages:
            await broker.publish(message, exchange=exchange, routing_key=key)

    terminal.broker(send)


def task(task_id: str = TASK, **headers: Any) -> Message:
    message = tasks.task_message(Task(CAPABILITY, Priority.P1, b"{}", id=TaskId(task_id)))
    return Message(message.body, {**message.headers, **headers}, message_id=message.message_id, type=message.type)


def test_capability_is_explained_with_agents_and_queues(terminal: Terminal) -> None:
    prepare(terminal)
    terminal.register()
    publish(terminal, task("a"), task("b"), exchange=routing.TASKS)

    told = terminal.run("capability", "get", CAPABILITY, "--why-not")
    document = terminal.run("capability", "get", CAPABILITY, "--why-not", "--output", "json").json

    assert told.code == 0
    assert told.out.startswith(f"{AGENT} has a free slot, but no agent consumes")
    assert "Fix: " in told.out
    assert "tasks.code.review.p1  2        0" in told.out
    assert document["question"] == {"capability": CAPABILITY, "priority": "p1", "tags": []}
    assert not document["agents"][0]["takes"]
    assert document["agents"][0]["obstacle"] == "not_consumed"
    assert [queue["messages"] for queue in document["queues"]] == [0, 2, 0]
    assert document["task"] is None


def test_tags_and_priority_are_asked_for(terminal: Terminal) -> None:
    prepare(terminal)
    terminal.register()

    document = terminal.run(
        "capability", "get", CAPABILITY, "--why-not", "-p", "p0", "--tag", "python", "--tag", "gpu", "-o", "json"
    ).json

    assert document["question"] == {"capability": CAPABILITY, "priority": "p0", "tags": ["gpu", "python"]}
    assert document["agents"][0]["takes"]
    assert "it lacks gpu, so agents with that are preferred" in document["agents"][0]["why"]
    assert "gpu" in document["agents"][0]["why"]


def test_unknown_capability_exits_4_with_the_nearest(terminal: Terminal) -> None:
    terminal.register()

    told = terminal.run("capability", "get", "code.revew", "--why-not")
    document = terminal.run("capability", "get", "code.revew", "--why-not", "--output", "json")

    assert (told.code, document.code) == (4, 4)
    assert "did you mean code.review?" in told.out
    assert document.json["nearest"] == [CAPABILITY]


def test_registry_that_does_not_answer_leaves_the_broker_s_word(terminal: Terminal) -> None:
    prepare(terminal)
    terminal.connections.directory.failing = True

    told = terminal.run("capability", "get", CAPABILITY, "--why-not")

    assert told.code == 0
    assert "The registry does not answer" in told.out


def test_name_that_is_none_is_a_usage_error(terminal: Terminal) -> None:
    assert terminal.run("capability", "get", "No Name", "--why-not").code == 2


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
    prepare(terminal)
    publish(terminal, task("other"), task(), task("third"), exchange=exchange)

    told = terminal.run("task", "get", TASK, "--why-not", "--capability", CAPABILITY)
    document = terminal.run("task", "get", TASK, "--why-not", "-c", CAPABILITY, "--output", "json")

    assert (told.code, document.code) == (0, 0)
    (seen,) = document.json["task"]["seen"]
    assert (seen["place"], seen["queue"], seen["before"]) == (place, queue, 1)
    assert f"Seen: {place} {queue}" in told.out
    assert terminal.count(queue) == 3
    assert waiting_ids(terminal, queue) == ["other", TASK, "third"]


def test_task_that_is_nowhere_exits_4_and_says_what_cannot_be_known(terminal: Terminal) -> None:
    prepare(terminal)

    told = terminal.run("task", "get", TASK, "--why-not")
    document = terminal.run("task", "get", TASK, "--why-not", "--output", "json")

    assert (told.code, document.code) == (4, 4)
    assert "name its capability with --capability" in told.out
    assert "only who submitted it learns how" in told.out
    assert document.json["task"]["perhaps"]


def test_queue_is_looked_through_only_so_far(terminal: Terminal) -> None:
    prepare(terminal)
    publish(terminal, *(task(f"t{number}") for number in range(5)), task(), exchange=routing.TASKS)

    short = terminal.run("task", "get", TASK, "--why-not", "-c", CAPABILITY, "--limit", "5", "--output", "json")
    enough = terminal.run("task", "get", TASK, "--why-not", "-c", CAPABILITY, "--limit", "6", "--output", "json")

    assert (short.code, short.json["task"]["cut"]) == (4, ["tasks.code.review.p1"])
    assert (enough.code, enough.json["task"]["seen"][0]["before"]) == (0, 5)


def test_foreign_id_is_looked_for(terminal: Terminal) -> None:
    prepare(terminal)
    publish(terminal, task("order-7"), exchange=routing.TASKS)

    assert terminal.run("task", "get", "order-7", "--why-not", "-c", CAPABILITY).code == 0


def waiting_ids(terminal: Terminal, queue: str) -> list[str | None]:
    async def look(broker: Broker) -> list[str | None]:
        found = []
        while (delivery := await broker.get(queue)) is not None:
            found.append(delivery.message.message_id)
        await broker.release()
        return found

    ids: list[str | None] = terminal.broker(look)
    return ids
