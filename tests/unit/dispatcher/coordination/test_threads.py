"""Threads of one shard, asked for request by request: the test plays the participants and time."""

from __future__ import annotations

from functools import partial
from typing import Any
from uuid import uuid4

import pytest

from coditect.errors import InputError, InvalidTask, NotFound, TooLarge
from coditect.wire.control import Verb
from coditect.wire.json import MAX_JSON_LEVELS, loads
from dispatcher.coordination import threads
from dispatcher.ledger.keyspace import (
    DUE,
    THREAD_MEMBERS,
    THREAD_MESSAGES,
    THREAD_READERS,
    THREAD_SENT,
    THREADS,
    TIMERS,
)
from dispatcher.store.keys import Space
from tests.unit.dispatcher.lone_ledger import Ledger

ID = str(uuid4())
SPACES = (THREADS, THREAD_MESSAGES, THREAD_SENT, THREAD_MEMBERS, THREAD_READERS, TIMERS, DUE)


@pytest.fixture
async def opened(ledger: Ledger) -> Ledger:
    await open_thread(ledger)
    return ledger


async def open_thread(ledger: Ledger, **more: Any) -> dict[str, Any]:
    return await ledger.ask(
        Verb.THREAD_OPEN, {"thread": ID, "participants": ["ada", "writer", "code.review"], "keep_ms": 60_000} | more
    )


async def say(ledger: Ledger, message: str, by: str = "ada", **more: Any) -> int:
    body = {"thread": ID, "message": message, "names": [by], "value": message, "writer": f"{by}-1"}
    return int((await ledger.ask(Verb.THREAD_SAY, body | more))["number"])


async def listen(ledger: Ledger, by: str, number: int = 0) -> dict[str, Any]:
    body = {"thread": ID, "names": [by], "ticket": f"ticket of {by}", "reply_to": f"reply.{by}"}
    return await ledger.ask(Verb.THREAD_READ, body | ({"number": number} if number else {}))


async def show(ledger: Ledger) -> dict[str, Any]:
    return await ledger.read(threads.show, thread=ID)


async def told(ledger: Ledger, **more: Any) -> list[tuple[int, str]]:
    page = await ledger.database.read(partial(threads.list_messages, body={"thread": ID} | more))
    return [(row["number"], row["value"]) for row in page["messages"]]


async def keys(ledger: Ledger, *spaces: Space) -> int:
    return sum([len(await ledger.database.read(lambda tr, s=one: tr.get_range(*s.range(())))) for one in spaces])  # type: ignore[misc]


def pushed(ledger: Ledger) -> list[tuple[str, Any]]:
    return [(out.routing_key, loads(out.message.body)) for out in ledger.messages]


def events(ledger: Ledger) -> list[str]:
    return [notice.type for notice in ledger.notices]


async def test_messages_are_numbered_in_order_and_a_repeated_one_is_said_once(opened: Ledger) -> None:
    numbers = [await say(opened, "a"), await say(opened, "b", "writer"), await say(opened, "a"), await say(opened, "c")]

    assert numbers == [1, 2, 1, 3]
    assert await told(opened) == [(1, "a"), (2, "b"), (3, "c")]
    assert events(opened) == ["agent.collab.started"] + 3 * ["agent.message.sent"]


async def test_a_message_to_some_is_for_them_and_its_sender_alone(opened: Ledger) -> None:
    await listen(opened, "writer")
    await listen(opened, "code.review")
    await say(opened, "secret", to=["writer"])
    await say(opened, "open")

    assert await told(opened, names=["code.review"]) == [(2, "open")]
    assert await told(opened, names=["writer"]) == await told(opened, names=["ada"]) == [(1, "secret"), (2, "open")]
    assert [(key, one["number"]) for key, one in pushed(opened)] == [
        ("reply.writer", 1),
        ("reply.code.review", 2),
        ("reply.writer", 2),
    ]


async def test_who_listens_is_told_by_push_but_not_of_its_own_messages_nor_after_it_left(opened: Ledger) -> None:
    await listen(opened, "writer")
    await say(opened, "own", "writer")
    await opened.ask(Verb.THREAD_READ, {"thread": ID, "names": ["writer"], "ticket": "ticket of writer"})
    await say(opened, "late")

    assert pushed(opened) == []


async def test_a_receipt_grows_and_never_beyond_the_last_message(opened: Ledger) -> None:
    await say(opened, "a")
    await say(opened, "b")
    assert (await listen(opened, "writer", 1))["last"] == 2
    assert (await show(opened))["read"] == {"ada": 0, "writer": 1, "code.review": 0}

    await listen(opened, "writer", 99)
    await listen(opened, "writer", 1)

    assert (await show(opened))["read"]["writer"] == 2


async def test_a_closed_thread_takes_no_message_but_knows_those_that_were_said(opened: Ledger) -> None:
    await say(opened, "a")
    await listen(opened, "writer")
    for _ in range(2):
        await opened.ask(Verb.THREAD_CLOSE, {"thread": ID, "reason": "done"})

    with pytest.raises(InputError, match="closed"):
        await say(opened, "b")
    assert await say(opened, "a") == 1
    assert (await listen(opened, "writer"))["closed"]
    assert pushed(opened) == [("reply.writer", {"closed": True})]
    assert events(opened).count("agent.collab.ended") == 1


async def test_strangers_and_messages_beyond_bounds_are_refused(
    opened: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MOST_SAID", 2)
    monkeypatch.setattr(threads, "MOST_MESSAGES", 3)
    for request in (say(opened, "x", "eve"), listen(opened, "eve"), say(opened, "x", to=["eve"])):
        with pytest.raises(InputError, match="no participant"):
            await request
    with pytest.raises(TooLarge, match="too large"):
        await say(opened, "a", value="x" * threads.MOST_MESSAGE_BYTES)
    await say(opened, "a")
    await say(opened, "b")
    with pytest.raises(InputError, match="all that it may"):
        await say(opened, "c")
    assert await say(opened, "d", "writer") == 3
    with pytest.raises(InputError, match="full"):
        await say(opened, "e", "writer")


@pytest.mark.parametrize(
    "wrong",
    [{"thread": "no uuid"}, {"participants": []}, {"participants": "ada"}, {"participants": ["x" * 201]},
     {"participants": [f"p{n}" for n in range(51)]}, {"title": "x" * 1_001}, {"type": 1}, {"keep_ms": -1}],
)  # fmt: skip
async def test_a_wrong_thread_is_not_opened(ledger: Ledger, wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidTask):
        await open_thread(ledger, **wrong)
    assert await keys(ledger, THREADS) == 0


async def test_a_known_thread_stays_as_it_is(opened: Ledger) -> None:
    again = await open_thread(opened, participants=["eve"], title="taken over")

    assert (again["participants"], again["title"]) == (["ada", "writer", "code.review"], "")


async def test_nothing_is_left_of_a_thread_after_its_retention_which_each_message_begins_again(opened: Ledger) -> None:
    await listen(opened, "writer", 0)
    await opened.pass_time(40)
    await say(opened, "a")
    await opened.pass_time(40)
    assert await told(opened) == [(1, "a")]

    await opened.pass_time(40)

    assert await keys(opened, *SPACES) == 0
    assert events(opened)[-1] == "agent.collab.ended"
    with pytest.raises(NotFound):
        await say(opened, "b")


async def test_pages_of_messages_and_threads_come_in_order(opened: Ledger) -> None:
    for n in range(5):
        await say(opened, str(n))
    first = await opened.read(threads.list_messages, thread=ID, limit=2)
    rest = await opened.read(threads.list_messages, thread=ID, after=first["next"])

    assert [row["number"] for row in first["messages"] + rest["messages"]] == [1, 2, 3, 4, 5]
    assert rest["next"] is None


async def test_threads_are_found_by_participant_binding_and_ticket_and_keep_their_metadata(ledger: Ledger) -> None:
    await open_thread(ledger, workflow="w", task="t", ticket="SHOP-7", metadata={"team": "blue"})
    await open_thread(ledger, thread=str(uuid4()), participants=["bob"])

    async def found(**wanted: Any) -> list[Any]:
        page = await ledger.database.read(partial(threads.list_threads, body=wanted))
        return [(one["thread"], one["ticket"], one["metadata"]) for one in page["threads"]]

    assert len(await found()) == 2
    for binding in ({"participant": "ada"}, {"workflow": "w"}, {"task": "t"}, {"ticket": "SHOP-7"}):
        assert await found(**binding) == [(ID, "SHOP-7", {"team": "blue"})]
    assert [await found(participant="eve"), await found(workflow="x"), await found(task="x")] == 3 * [[]]
    await ledger.ask(Verb.THREAD_CLOSE, {"thread": ID})
    assert [len(await found(open=True)), len(await found())] == [1, 2]


async def test_a_message_that_could_not_be_read_again_is_refused(opened: Ledger) -> None:
    value: Any = "deep"
    for _ in range(MAX_JSON_LEVELS - 20):  # JSON may be written so deep, and its reader of rows gives up before
        value = [value]

    with pytest.raises(InvalidTask, match="nested too deep"):
        await say(opened, "m", value=value)
    await say(opened, "after it")

    assert await told(opened) == [(1, "after it")]
