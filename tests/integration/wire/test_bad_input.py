"""Bad input ends as a dead letter with its reason and as an answer, and the consumer goes on."""

from __future__ import annotations

import json
import time

import pytest

from coditect.operations.letter import read_dead_letter
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


async def test_odd_message_that_is_a_task_all_the_same_is_done_or_retried_and_buried(
    fleet: Running, echo: Echo, amqp_url: str
) -> None:
    for name, properties in hostile.ODD_BUT_FINE.items():
        done = await blocking(foreign.ask, amqp_url, echo.capability, GOOD, **properties)
        failed = await blocking(foreign.ask, amqp_url, echo.capability, b'{"fail": true}', **properties)

        letters = await fleet.letters(f"dead.{echo.capability}")
        assert done.status == "completed", name
        assert (failed.status, failed.headers["x-coditect-attempt"]) == ("failed", 2), name
        assert [letter.reason for letter in letters] == ["handler_error"], name


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
