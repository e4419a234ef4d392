from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from coditect.broker.topology import shard_queues
from coditect.errors import NotFound
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.operations.dead_letters import DeadQueue, Selection
from coditect.operations.letter import DeadLetter
from coditect.wire import routing, tasks
from coditect.wire.routing import CAPABILITY
from tests.unit.operations.scene import DEAD, NOW_MS, Scene, letter

ALL = Selection()


async def browse(scene: Scene, selection: Selection = ALL, most: int = 100) -> list[DeadLetter]:
    async with aclosing(scene.letters.browse([DEAD, "unrouted"], selection, most=most)) as letters:
        return [one async for one in letters]


async def test_letter_of_an_agent_is_read_whole(scene: Scene) -> None:
    await scene.bury(letter("one", own={"redrive": 2}), key="code.review.p0")

    (read,) = await browse(scene)

    assert (read.id, read.capability, read.priority) == ("one", "code.review", Priority.P0)
    assert (read.reason, read.agent_id, read.attempts) == ("handler_error", "reviewer-00000001", 3)
    assert read.error is not None
    assert (read.error.type, read.error.message) == ("ValueError", "no such file")
    assert (read.dead_at_ms, read.redrives, read.queue) == (NOW_MS - 60_000, 2, DEAD)
    assert read.errors == ({"agent": "reviewer-00000001", "attempt": 1, "message": "first"},)
    assert read.body == b'{"path": "src"}'


async def test_reason_of_a_rejected_task_comes_from_the_broker(scene: Scene) -> None:
    await scene.broker.publish(Message(b"1"), exchange=routing.TASKS, routing_key="code.review.p1")
    delivery = await scene.broker.get("tasks.code.review.p1")
    assert delivery is not None
    delivery.reject()

    (read,) = await browse(scene)

    assert (read.reason, read.id, read.agent_id, read.attempts, read.error) == ("rejected", None, None, 0, None)
    assert read.dead_at_ms is not None


async def test_reason_is_that_of_the_task_queue_and_not_of_an_earlier_retry(scene: Scene) -> None:
    died = datetime(2026, 1, 1, tzinfo=UTC)
    deaths = [
        {"queue": "retry.1000", "reason": "expired", "time": died},
        {"queue": "tasks.code.review.p1", "reason": "delivery_limit", "time": died},
    ]
    await scene.bury(Message(b"1", headers={"x-death": deaths}))

    (read,) = await browse(scene)

    assert read.reason == "delivery_limit"
    assert read.dead_at_ms == int(died.timestamp() * 1000)


async def test_report_that_a_dispatcher_refused_says_so(scene: Scene) -> None:
    await scene.broker.declare(shard_queues(0))
    await scene.broker.publish(Message(b"1"), exchange=routing.RESULTS, routing_key="0")
    delivery = await scene.broker.get(routing.results_queue(0))
    assert delivery is not None
    delivery.reject()

    (read,) = await browse(scene)

    assert (read.reason, read.queue) == ("unreadable_report", "unrouted")


async def test_letter_without_a_queue_is_unrouted(scene: Scene) -> None:
    await scene.broker.publish(Message(b"1"), exchange=routing.TASKS, routing_key="nobody.does.p2")

    (read,) = await browse(scene)

    assert (read.reason, read.capability, read.priority, read.queue) == (
        "unrouted",
        "nobody.does",
        Priority.P2,
        "unrouted",
    )


@pytest.mark.parametrize(
    "headers",
    [
        {tasks.ERROR: "not json", tasks.ERRORS: "not json"},
        {tasks.ERROR: "[1]", tasks.ERRORS: "{}"},
        {tasks.ERROR: 7, tasks.ERRORS: 7, tasks.REASON: 7, tasks.AGENT: [1], tasks.ATTEMPT: True},
        {tasks.ATTEMPT: -1, tasks.REDRIVE: "99999999999", tasks.DEAD_AT: "soon"},
        {"x-death": "nonsense"},
        {"x-death": [7, {"queue": 7, "reason": 7, "time": "then"}]},
        {"CC": ["../../etc.p0"], CAPABILITY: "x"},
    ],
)
async def test_hostile_headers_are_read_without_an_error(scene: Scene, headers: dict[str, Any]) -> None:
    await scene.bury(Message(b"\xff", headers=headers))

    (read,) = await browse(scene)

    assert read.capability == "code.review"
    assert read.attempts >= 0


async def test_pinned_letter_has_the_capability_of_its_first_carbon_copy(scene: Scene) -> None:
    headers = {"CC": ["code.review.p0"], CAPABILITY: "code.review"}
    await scene.broker.publish(Message(b"1", headers=headers), exchange=routing.DEAD, routing_key="reviewer-00000001")

    (read,) = await browse(scene)

    assert (read.capability, read.priority) == ("code.review", Priority.P0)


async def test_browsing_leaves_every_letter_where_it_was_and_ends_after_as_many_as_were_asked_for(scene: Scene) -> None:
    await scene.bury(*(letter(f"id-{number}") for number in range(5)))

    first = [one.id for one in await browse(scene)]
    second = [one.id for one in await browse(scene)]

    assert first == second == [f"id-{number}" for number in range(5)]
    assert scene.count(DEAD) == 5

    read = await browse(scene, most=2)

    assert [one.id for one in read] == ["id-0", "id-1"]
    assert scene.count(DEAD) == 5


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(ids=frozenset({"b"})), ["b"]),
        (Selection(reason="expired"), ["b"]),
        (Selection(agent_id="reviewer-00000001"), ["a", "b"]),
        (Selection(agent_id="nobody"), []),
        (Selection(capability="code.review", reason="handler_error"), ["a"]),
        (Selection(capability="tests.run"), []),
        (Selection(), ["a", "b"]),
    ],
)
async def test_selection_takes_what_matches_every_field(
    scene: Scene, selection: Selection, expected: list[str]
) -> None:
    await scene.bury(letter("a"), letter("b", reason="expired"))

    read = await browse(scene, selection)

    assert [one.id for one in read] == expected


async def test_show_finds_a_letter_by_its_id_and_leaves_it(scene: Scene) -> None:
    await scene.bury(letter("a"), letter("b"))

    shown = await scene.letters.show([DEAD], "b")

    assert shown.id == "b"
    assert scene.count(DEAD) == 2

    with pytest.raises(NotFound):
        await scene.letters.show([DEAD, "unrouted"], "nope")


async def test_only_queues_that_exist_are_named(scene: Scene) -> None:
    await scene.bury(letter("a"))

    queues = await scene.letters.queues(["code.review", "tests.run"])

    assert queues == (DeadQueue(DEAD, 1), DeadQueue("unrouted", 0))


async def test_queue_that_is_gone_holds_no_letters(scene: Scene) -> None:
    read = await scene.letters.discard(["dead.nothing"], Selection())

    assert (read.count, read.kept, read.stopped) == (0, (), None)
