"""Bad input ends as a dead letter with its reason and as an answer, and the consumer goes on."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import uuid4

import pytest

from coditect.broker.topology import Queue, QueueType, Topology
from coditect.model.capability import Priority
from coditect.operations.dead_letters.letter import read_dead_letter
from coditect.wire import routing
from tests.fleet import Letter, Running, running
from tests.integration.wire import foreign, hostile
from tests.integration.wire.agent import Echo
from tests.integration.wire.foreign import Answer, blocking
from tests.integration.wire.hostile import GOOD, Bad
from tests.servers import Servers
from tests.support import eventually

pytestmark = pytest.mark.servers


async def test_every_bad_message_is_a_dead_letter_with_its_reason_and_is_answered(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    failures = {}
    for bad in hostile.ALL:
        answer, letters = await _given_up(fleet, echo, amqp_url, bad)
        reasons = [letter.reason for letter in letters]
        told = json.loads(answer.body)["reason"] if answer else None
        wanted = ([bad.reason], bad.reason if bad.answered else None)
        if (reasons, told) != wanted:
            failures[bad.name] = (reasons, told)
    good = await blocking(foreign.ask, amqp_url, echo.capability, GOOD)

    assert failures == {}
    assert good.status == "completed"
    assert echo.started == ["good"]
    assert fleet.broker.connected


async def _given_up(fleet: Running, echo: Echo, url: str, bad: Bad) -> tuple[Answer | None, list[Letter]]:
    if bad.answered:
        answer = await blocking(foreign.ask, url, echo.capability, bad.body, **bad.properties)
    else:
        answer = None
        await blocking(foreign.publish, url, echo.capability, bad.body, **bad.properties)
    letters: list[Letter] = []

    async def dead() -> bool:
        letters.extend(await fleet.letters(f"dead.{echo.capability}"))
        return bool(letters)

    await eventually(dead)
    return answer, letters


@pytest.mark.parametrize(
    ("encoded", "why"),
    [(hostile.nested(5_000), "nested"), (hostile.void_array(120_000), "bytes")],
    ids=["5,000 tables in each other", "120,000 values of one byte"],
)
async def test_header_table_that_would_choke_its_reader_is_refused(
    fleet: Running, echo: Echo, amqp_url: str, encoded: bytes, why: str
) -> None:
    def publish() -> None:
        with foreign.channel(amqp_url) as opened:
            hostile.publish_raw_headers(opened, "coditect.tasks", echo.capability, encoded)

    await blocking(publish)

    answer = await blocking(foreign.ask, amqp_url, echo.capability, GOOD)
    (letter,) = await fleet.letters(f"dead.{echo.capability}")
    assert answer.status == "completed"
    assert letter.reason == "invalid_task"
    assert why in str(letter.headers["x-coditect-error"])


@pytest.mark.parametrize("properties", hostile.ODD_BUT_FINE.values(), ids=hostile.ODD_BUT_FINE.keys())
async def test_odd_message_that_is_a_task_all_the_same_is_done(
    fleet: Running, echo: Echo, amqp_url: str, properties: dict[str, Any]
) -> None:
    answer = await blocking(foreign.ask, amqp_url, echo.capability, GOOD, **properties)

    assert answer.status == "completed"
    assert await fleet.letters(f"dead.{echo.capability}") == []


@pytest.mark.parametrize("properties", hostile.ODD_BUT_FINE.values(), ids=hostile.ODD_BUT_FINE.keys())
async def test_odd_message_that_fails_is_retried_and_buried_all_the_same(
    fleet: Running, echo: Echo, amqp_url: str, properties: dict[str, Any]
) -> None:
    answer = await blocking(foreign.ask, amqp_url, echo.capability, b'{"fail": true}', **properties)

    letters = await fleet.letters(f"dead.{echo.capability}")
    assert (answer.status, answer.headers["x-coditect-attempt"]) == ("failed", 2)
    assert [letter.reason for letter in letters] == ["handler_error"]


async def test_failing_task_with_as_many_headers_as_a_task_may_have_is_retried_and_buried(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    headers = {f"h{n}": "x" * 4_050 for n in range(16)}
    body = json.dumps({"fail": True, "say": "\n" * 10_000}).encode()

    answer = await blocking(foreign.ask, amqp_url, echo.capability, body, headers=headers)

    (letter,) = await fleet.letters(f"dead.{echo.capability}")
    assert (answer.status, answer.headers["x-coditect-attempt"]) == ("failed", 2)
    assert letter.reason == "handler_error"
    assert json.loads(str(letter.headers["x-coditect-error"]))["type"] == "ValueError"


@pytest.mark.parametrize("limit", ["deadline", "start-by"])
async def test_task_whose_time_has_passed_is_a_dead_letter_and_is_answered(
    fleet: Running, echo: Echo, amqp_url: str, limit: str
) -> None:
    past = int(time.time() * 1000) - 1_000

    answer = await blocking(foreign.ask, amqp_url, echo.capability, GOOD, headers={f"x-coditect-{limit}": past})

    (letter,) = await fleet.letters(f"dead.{echo.capability}")
    assert (answer.status, json.loads(answer.body)["reason"]) == ("rejected", "expired")
    assert letter.reason == "expired"
    assert echo.started == []


async def test_task_that_expires_in_its_queue_is_a_dead_letter(echo: Echo, servers: Servers, amqp_url: str) -> None:
    echo.slots = 1
    async with running(echo.agent(), servers) as fleet:
        await blocking(foreign.publish, amqp_url, echo.capability, b'{"wait": true}')
        await eventually(lambda: echo.started)

        await blocking(foreign.publish, amqp_url, f"{echo.capability}.p2", GOOD, expiration="200")

        dead = routing.dead_queue(echo.capability)

        async def expired() -> bool:
            delivery = await fleet.broker.get(dead)
            found = delivery is not None and read_dead_letter(delivery).reason == "expired"
            await fleet.broker.release()
            return found

        await eventually(expired)
        echo.gate.set()
        await eventually(lambda: fleet.runtime.load().completed == 1)
        assert echo.started == ["nothing"]


async def test_task_published_again_while_it_runs_runs_once_and_both_are_answered(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    answers = Queue(f"answers-{uuid4().hex}", QueueType.CLASSIC, expires_ms=60_000)
    await fleet.broker.declare(Topology(queues=(answers,)))
    same = {"message_id": uuid4().hex, "reply_to": answers.name}
    await blocking(foreign.publish, amqp_url, echo.capability, b'{"wait": true}', correlation_id="1", **same)
    await eventually(lambda: echo.started)
    await blocking(foreign.publish, amqp_url, echo.capability, b'{"wait": true}', correlation_id="2", **same)
    await eventually(lambda: fleet.drained(routing.task_queue(echo.capability, Priority.P1)))

    echo.gate.set()

    await eventually(lambda: fleet.holds(answers.name, 2))
    letters = await fleet.letters(answers.name)
    assert {letter.correlation_id for letter in letters} == {"1", "2"}
    assert len(echo.started) == 1
    await fleet.broker.delete_queue(answers.name)


async def test_task_published_again_after_it_was_done_is_answered_without_running(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    message_id = uuid4().hex
    first = await blocking(foreign.ask, amqp_url, echo.capability, GOOD, message_id=message_id)

    second = await blocking(foreign.ask, amqp_url, echo.capability, GOOD, message_id=message_id)

    assert (second.status, second.body) == (first.status, first.body)
    assert echo.started == ["good"]


async def test_task_published_again_after_it_failed_runs_again(fleet: Running, echo: Echo, amqp_url: str) -> None:
    message_id = uuid4().hex
    await blocking(foreign.ask, amqp_url, echo.capability, b'{"fail": true}', message_id=message_id)

    again = await blocking(foreign.ask, amqp_url, echo.capability, GOOD, message_id=message_id)

    assert again.status == "completed"


@pytest.mark.parametrize(
    "prefix", ["tasks.{}.p0", "dead.{}", "retry.100", "unrouted", "control", "results.0", "somebodys.ledger"]
)
async def test_task_with_a_return_address_that_is_not_meant_for_results_is_refused(
    fleet: Running, echo: Echo, amqp_url: str, prefix: str
) -> None:
    reply_to = prefix.format(echo.capability)

    await blocking(foreign.publish, amqp_url, echo.capability, GOOD, reply_to=reply_to)

    letters: list[Letter] = []

    async def dead() -> bool:
        letters.extend(await fleet.letters(f"dead.{echo.capability}"))
        return bool(letters)

    await eventually(dead)
    assert [letter.reason for letter in letters] == ["invalid_task"]
    assert "CODITECT_ANSWER_QUEUES" in str(letters[0].headers["x-coditect-error"])
    assert echo.started == []


async def test_reply_queue_that_is_full_costs_its_own_answers_and_holds_up_nobody_for_long(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    full = Queue(f"answers-full-{uuid4().hex}", QueueType.CLASSIC, max_length=1, expires_ms=60_000)
    await fleet.broker.declare(Topology(queues=(full,)))
    await blocking(foreign.publish, amqp_url, echo.capability, *[GOOD] * 50, reply_to=full.name)

    answer = await blocking(foreign.ask, amqp_url, echo.capability, GOOD, seconds=10)

    assert answer.status == "completed"
    await eventually(lambda: fleet.runtime.load().completed == 51)
    await fleet.broker.delete_queue(full.name)


async def test_unknown_capability_is_kept_as_unrouted(fleet: Running, amqp_url: str) -> None:
    message_id = uuid4().hex

    await blocking(foreign.publish, amqp_url, "nobody.offers.this.p0", GOOD, message_id=message_id)

    async def kept() -> bool:
        found = False
        while not found and (delivery := await fleet.broker.get("unrouted")) is not None:
            found = delivery.message.message_id == message_id
            if found:
                delivery.ack()
        await fleet.broker.release()
        return found

    await eventually(kept)
