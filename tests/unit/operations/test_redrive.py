from __future__ import annotations

import asyncio
import json

import pytest

from coditect.broker.port import Delivery
from coditect.errors import BrokerUnavailable, InputError, InvalidTask, TooLarge, Unroutable
from coditect.model.message import Message
from coditect.operations.dead_letters import WINDOW, Selection
from coditect.wire import routing, tasks
from coditect.wire.routing import CAPABILITY
from tests.support import eventually
from tests.unit.operations.scene import DEAD, NOW_MS, TASKS, Scene, letter

ALL = Selection()


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
