"""Dead letters are read, redriven and discarded."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from coditect.broker.port import Delivery
from coditect.broker.topology import shard_queues
from coditect.errors import BrokerUnavailable, InputError, InvalidTask, NotFound, TooLarge, Unroutable
from coditect.model.capability import Priority
from coditect.model.message import Message
from coditect.operations.dead_letters import WINDOW, DeadQueue, Selection
from coditect.operations.letter import DeadLetter
from coditect.wire import routing, tasks
from coditect.wire.routing import CAPABILITY
from tests.support import eventually
from tests.unit.operations.scene import DEAD, NOW_MS, TASKS, Scene, letter

ALL = Selection()


async def browse(scene: Scene, selection: Selection = ALL, most: int = 100) -> list[DeadLetter]:
    async with aclosing(scene.letters.browse([DEAD, "unrouted"], selection, most=most)) as letters:
        return [letter async for letter in letters]


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

    first = [letter.id for letter in await browse(scene)]
    second = [letter.id for letter in await browse(scene)]

    assert first == second == [f"id-{number}" for number in range(5)]
    assert scene.count(DEAD) == 5

    read = await browse(scene, most=2)

    assert [letter.id for letter in read] == ["id-0", "id-1"]
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

    assert [letter.id for letter in read] == expected


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


async def test_redriven_letter_is_a_fresh_task_with_its_history(scene: Scene) -> None:
    await scene.bury(letter("one", reply_to="reply.me", correlation_id="mine", own={"redrive": 1}))

    settled = await scene.letters.redrive([DEAD], ALL)

    (task,) = [tasks.read_task(message, "code.review.p1") for message in await scene.taken(TASKS)]
    assert (settled.count, settled.ids, settled.kept) == (1, ("one",), ())
    assert (task.id, task.reply_to, task.correlation_id) == ("one", "reply.me", "mine")
    assert (task.attempt, task.redrive, task.published_at_ms) == (1, 2, NOW_MS)
    assert [entry["message"] for entry in task.errors] == ["first", "no such file"]
    assert scene.count(DEAD) == 0


async def test_headers_are_those_of_a_task_and_the_history_has_each_failure_once(scene: Scene) -> None:
    history = [{"attempt": 3, "message": "no such file"}]
    await scene.bury(letter("one", headers={tasks.ERRORS: json.dumps(history)}))

    await scene.letters.redrive([DEAD], ALL)

    (message,) = await scene.taken(TASKS)
    assert json.loads(message.headers[tasks.ERRORS]) == history

    strange = {"x-death": [{"queue": TASKS, "reason": "expired"}], "CC": ["tests.run.p0"], "x-evil": "yes"}
    await scene.bury(letter("one", headers={**strange, "traceparent": "00-abc"}, own={"timeout_ms": 500}))

    await scene.letters.redrive([DEAD], ALL)

    (message,) = await scene.taken(TASKS)
    assert set(message.headers) == {tasks.REDRIVE, tasks.ERRORS, tasks.PUBLISHED_AT, tasks.TIMEOUT_MS, "traceparent"}


@pytest.mark.parametrize(
    ("deadline", "keep_limits", "expected"),
    [
        (NOW_MS - 1, False, None),
        (NOW_MS - 1, True, NOW_MS - 1),
        (NOW_MS + 1, False, NOW_MS + 1),
        (NOW_MS + 1, True, NOW_MS + 1),
    ],
)
async def test_limits_that_have_passed_are_dropped_unless_kept(
    scene: Scene, deadline: int, keep_limits: bool, expected: int | None
) -> None:
    await scene.bury(letter("one", own={"deadline": deadline, "start_by": deadline}))

    await scene.letters.redrive([DEAD], ALL, keep_limits=keep_limits)

    (message,) = await scene.taken(TASKS)
    limits = tasks.read_task(message, "code.review.p1").limits
    assert (limits.deadline_ms, limits.start_by_ms) == (expected, expected)


async def test_letter_without_an_id_gets_none(scene: Scene) -> None:
    await scene.bury(letter(None))

    settled = await scene.letters.redrive([DEAD], ALL)

    (message,) = await scene.taken(TASKS)
    assert message.message_id is None
    assert (settled.count, settled.ids) == (1, ())


async def test_letter_whose_capability_has_no_queue_stays(scene: Scene) -> None:
    await scene.broker.publish(Message(b"1", message_id="lonely"), exchange=routing.TASKS, routing_key="no.such.p1")
    await scene.bury(letter("one"))

    settled = await scene.letters.redrive(["unrouted", DEAD], ALL)

    assert settled.ids == ("one",)
    (kept,) = settled.kept
    assert (kept.id, kept.queue, type(kept.error)) == ("lonely", "unrouted", Unroutable)
    assert scene.count("unrouted") == 1


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        (letter("one", headers={tasks.TIMEOUT_MS: "never"}), InvalidTask),
        (letter("one", body=b"x" * (tasks.MAX_BODY_BYTES + 1)), TooLarge),
        (letter("one", headers={"CC": ["NO NAME.p0"], CAPABILITY: "x"}), InputError),
    ],
)
async def test_letter_that_never_was_a_task_stays(scene: Scene, broken: Message, error: type[InputError]) -> None:
    await scene.bury(broken)

    settled = await scene.letters.redrive([DEAD], ALL)

    assert [isinstance(kept.error, error) for kept in settled.kept] == [True]
    assert (settled.count, scene.count(DEAD), scene.count(TASKS)) == (0, 1, 0)


async def test_dry_run_says_what_would_be_done_and_changes_nothing(scene: Scene) -> None:
    await scene.bury(letter("one"), letter("two", reason="expired"))

    redriven = await scene.letters.redrive([DEAD], Selection(reason="expired"), dry_run=True)
    discarded = await scene.letters.discard([DEAD], ALL, dry_run=True)

    assert (redriven.ids, redriven.dry_run) == (("two",), True)
    assert (discarded.ids, discarded.dry_run) == (("one", "two"), True)
    assert (scene.count(DEAD), scene.count(TASKS)) == (2, 0)


async def test_more_letters_than_a_window_are_all_redriven_once(scene: Scene) -> None:
    ids = [f"id-{number}" for number in range(2 * WINDOW + 1)]
    await scene.bury(*(letter(letter_id) for letter_id in ids))

    settled = await scene.letters.redrive([DEAD], ALL)

    assert list(settled.ids) == ids
    assert sorted(message.message_id or "" for message in await scene.taken(TASKS)) == sorted(ids)
    assert scene.count(DEAD) == 0


async def test_letters_that_die_again_at_once_are_redriven_once_per_run(scene: Scene) -> None:
    def die(delivery: Delivery) -> None:
        redriven = letter("poison", own={"redrive": delivery.message.headers[tasks.REDRIVE], "dead_at": NOW_MS})
        deaths.append(asyncio.ensure_future(scene.bury(redriven)))
        delivery.ack()

    deaths: list[asyncio.Future[None]] = []
    await scene.broker.consume(TASKS, die, prefetch=10)
    await scene.bury(letter("poison"), *(letter(f"id-{number}") for number in range(WINDOW)))

    settled = await scene.letters.redrive([DEAD], ALL)
    await eventually(lambda: scene.count(DEAD) == WINDOW + 1)

    assert settled.count == WINDOW + 1
    assert len(deaths) == WINDOW + 1


async def test_lost_broker_ends_the_run_and_loses_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(message: Message, **where: object) -> None:
        raise BrokerUnavailable("The broker could not be reached in time")

    await scene.bury(letter("one"), letter("two"))
    monkeypatch.setattr(scene.broker, "publish", unreachable)

    settled = await scene.letters.redrive([DEAD, "unrouted"], ALL)

    assert isinstance(settled.stopped, BrokerUnavailable)
    assert (settled.count, len(settled.kept)) == (0, 2)
    assert scene.count(DEAD) == 2


async def test_canceled_redrive_gives_everything_back(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(message: Message, **where: object) -> None:
        started.set()
        await asyncio.Event().wait()

    started = asyncio.Event()
    await scene.bury(letter("one"))
    monkeypatch.setattr(scene.broker, "publish", hang)

    running = asyncio.create_task(scene.letters.redrive([DEAD], ALL))
    await started.wait()
    running.cancel()
    await asyncio.wait([running])

    assert running.cancelled()
    assert scene.count(DEAD) == 1


async def test_connection_lost_between_reading_and_publishing_publishes_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = scene.broker.stats

    async def stats_and_loss(queue: str) -> object:
        found = await stats(queue)
        if queue == TASKS:
            scene.broker.drop()
        return found

    await scene.bury(letter("one"))
    monkeypatch.setattr(scene.broker, "stats", stats_and_loss)

    settled = await scene.letters.redrive([DEAD], ALL)

    assert isinstance(settled.stopped, BrokerUnavailable)
    assert (scene.count(DEAD), scene.count(TASKS)) == (1, 0)


@pytest.mark.parametrize("dry_run", [False, True])
async def test_connection_lost_between_reading_and_discarding_discards_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    get = scene.broker.get

    async def get_and_loss(queue: str) -> Delivery | None:
        if (found := await get(queue)) is None:
            scene.broker.drop()
        return found

    await scene.bury(letter("one"))
    monkeypatch.setattr(scene.broker, "get", get_and_loss)

    settled = await scene.letters.discard([DEAD], ALL, dry_run=dry_run)

    assert isinstance(settled.stopped, BrokerUnavailable)
    assert (settled.count, [kept.id for kept in settled.kept], scene.count(DEAD)) == (0, ["one"], 1)


async def test_discard_takes_out_only_what_was_chosen(scene: Scene) -> None:
    await scene.bury(letter("one"), letter("two"), letter("three"))

    settled = await scene.letters.discard([DEAD], Selection(ids=frozenset({"two"})))

    assert settled.ids == ("two",)
    assert [message.message_id for message in await scene.taken(DEAD)] == ["one", "three"]
