"""Threads and handoffs in the words of the collaboration API, which are those of `/v1` by other names."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

import pytest
from httpx2 import AsyncClient
from starlette.requests import HTTPConnection

from coditect import Agent, Context, Handle, HandoffOffer
from coditect.api.access import Caller, Role
from coditect.api.problems import RequestRefused
from coditect.api.routes.parameters import acting_name
from coditect.client.coordination import Handoffs
from coditect.collaboration.handoffs import HandoffRow
from coditect.collaboration.threads import Thread
from coditect.errors import BrokerUnavailable
from coditect.model.registration import AgentStatus, Load
from coditect.testing import TestFleet
from coditect.wire.control import Verb
from tests.api import api_of, services_of
from tests.unit.registry.samples import make_registration

PATH = "/api/v1/collaboration"


async def post(api: AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await api.post(PATH + path, json=body)
    assert answer.is_success, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_agents_open_a_thread_speak_read_and_close_it(api: AsyncClient) -> None:
    order = {"participants": ["writer", "critic"], "ticket_id": "SHOP-7", "metadata": {"team": "blue"}}
    opened = await post(api, "/threads", thread_type="review", task_id="w:one", **order)
    thread = opened["thread_id"]
    to_all = {"thread_id": thread, "from_agent_id": "writer", "message_type": "note", "content": {"a": 1}}
    first = await post(api, "/messages", **to_all, message_metadata={"draft": 2})
    second = await post(api, "/messages", thread_id=thread, from_agent_id="critic", to_agent_id="writer", content="no")
    await post(api, f"/messages/{first['message_id']}/read", agent_id="critic")
    read = await post(api, f"/messages/{second['message_id']}/read")
    messages = (await api.get(f"{PATH}/threads/{thread}/messages", params={"after": 1})).json()
    shown = (await api.get(f"/v1/threads/{thread}")).json()
    closed = await post(api, f"/threads/{thread}/close")
    wanted = {"agent": "writer", "ticket": "SHOP-7"}
    found = [
        (await api.get(f"{PATH}/threads", params=wanted | {"status": status})).json() for status in ("open", "closed")
    ]

    assert (opened["participants"], opened["ticket_id"], opened["metadata"]) == tuple(order.values())
    assert (first["number"], first["to_agent_id"], first["message_metadata"]) == (1, None, {"draft": 2})
    assert read["read_by"] == ["writer"]
    assert [(one["content"], one["from_agent_id"]) for one in messages] == [("no", "critic")]
    assert messages[0]["to_agent_id"] == "writer"
    assert (shown["thread"]["ticket"], shown["thread"]["read"]) == ("SHOP-7", {"writer": 2, "critic": 1})
    assert closed["status"] == "closed"
    assert [len(rows) for rows in found] == [0, 1]


async def test_what_is_not_there_is_said_with_what_to_do(api: AsyncClient) -> None:
    thread = (await post(api, "/threads", participants=["a"]))["thread_id"]
    missing = [
        await api.post(f"{PATH}/messages/{message}/read") for message in (f"{thread}.9", "unknown", f"{thread}.x")
    ]
    missing += [await api.get(f"{PATH}/threads/unknown/messages"), await api.post(f"{PATH}/handoff/{thread}/accept")]
    stranger = await api.post(f"{PATH}/messages", json={"thread_id": thread, "from_agent_id": "eve", "content": 1})
    direct = {"from_agent_id": "a", "to_agent_id": "b", "task_id": "direct"}
    refused = await api.post(f"{PATH}/handoff/request", json=direct)

    assert [one.status_code for one in missing] == [404] * 5
    assert (stranger.status_code, refused.status_code) == (422, 422)
    assert "durable=True" in refused.json()["fix"]


owner, other = Agent("owner"), Agent("other")
ended: list[str] = []


@owner.capability("note.write", timeout="5m")
async def write(text: str, ctx: Context) -> str:
    """Write until the task is another agent's."""
    try:
        await asyncio.sleep(120)
    except asyncio.CancelledError:
        ended.append(ctx.agent_id)
        raise
    return f"{text}, by its owner"


@other.capability("note.print")
async def print_note(text: str) -> str:
    """Print the note."""
    return f"{text}, printed"


@other.on_handoff
async def decide(_: HandoffOffer) -> bool:
    """Never answer in time, as an agent whose people decide."""
    await asyncio.sleep(7.9)
    return False


async def running_note(fleet: TestFleet) -> tuple[Handle, dict[str, Any]]:
    """A task that its owner runs, and the order that hands it off."""
    (agent,) = await fleet.add(owner)
    handle = await fleet.client.submit("note.write", "long", durable=True)
    await fleet.advance("2s")
    return handle, {"from_agent_id": agent.id, "to_agent_id": "note.print", "task_id": handle.task_id}


async def test_a_running_task_is_handed_off_for_its_owner_and_accepted_by_the_id_of_the_message(
    fleet: TestFleet, api: AsyncClient
) -> None:
    ended.clear()
    await fleet.add(other)
    handle, order = await running_note(fleet)
    requested = await post(api, "/handoff/request", **order, reason="too long", context={"pages": 9})
    (message,) = (await api.get(f"{PATH}/threads/{requested['thread_id']}/messages")).json()
    accepted = await post(api, f"/handoff/{requested['message_id']}/accept")
    late = await post(api, f"/handoff/{requested['thread_id']}/decline", reason="no")
    later = await api.post(f"{PATH}/handoff/{requested['handoff_id']}/accept", json={"agent_id": "ada"})

    assert await handle.result(str, timeout="1m") == "long, printed"
    assert ended == [order["from_agent_id"]]
    assert message["content"] | {"handoff_id": ""} == {
        "handoff_id": "",
        "task_id": handle.task_id,
        "reason": "too long",
        "context": {"pages": 9},
    }
    wanted = {"status": "accepted", "from_agent_id": order["from_agent_id"], "handoff_id": requested["handoff_id"]}
    assert {name: accepted[name] for name in wanted} == wanted
    assert str(accepted["accepted_by"]).startswith("other-")
    assert (requested["status"], late["status"], later.status_code) == ("requested", "accepted", 422)


async def test_a_declined_task_stays_with_its_owner(fleet: TestFleet, api: AsyncClient) -> None:
    await fleet.add(other)
    handle, order = await running_note(fleet)
    body = {"task": handle.task_id, "owner": order["from_agent_id"], "to": "note.print"}
    row = (await api.post("/v1/handoffs", json=body)).json()
    twice = await api.post("/v1/handoffs", json=body)
    declined = await api.post(
        f"/v1/handoffs/{row['handoff']}/decline", json={"agent": row["asked"][0]["agent"], "reason": "no paper"}
    )

    assert await handle.result(str, timeout="5m") == "long, by its owner"
    assert twice.status_code == 409
    assert declined.json()["state"] == "declined"
    assert [one["declined"] for one in declined.json()["asked"]] == ["no paper"]


async def test_a_repeated_request_of_a_handoff_continues_and_a_refused_one_leaves_no_open_thread(
    fleet: TestFleet, api: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fleet.add(other)
    _, order = await running_note(fleet)
    with monkeypatch.context() as broken:
        broken.setattr(Thread, "say", unanswered)
        lost = await api.post(f"{PATH}/handoff/request", json=order, headers={"Idempotency-Key": "a"})
    first, again = [
        await api.post(f"{PATH}/handoff/request", json=order, headers={"Idempotency-Key": "a"}) for _ in range(2)
    ]
    other_key = await api.post(f"{PATH}/handoff/request", json=order, headers={"Idempotency-Key": "b"})
    rows = [row async for row in fleet.client.handoffs.list()]
    opened = (await api.get(f"{PATH}/threads", params={"status": "open"})).json()

    assert (lost.status_code, first.status_code, other_key.status_code) == (503, 201, 409)
    assert first.json() == again.json()
    assert [row.handoff for row in rows] == [first.json()["handoff_id"]]
    assert [(one["thread_id"], one["message_count"]) for one in opened] == [(first.json()["thread_id"], 1)]


async def unanswered(*_: Any, **more: Any) -> int:
    raise BrokerUnavailable("The broker does not answer")


async def test_an_offer_that_nobody_can_take_says_so_at_once(fleet: TestFleet, api: AsyncClient) -> None:
    _, order = await running_note(fleet)

    assert (await post(api, "/handoff/request", **order | {"to_agent_id": "nobody"}))["status"] == "declined"


async def test_an_accept_that_comes_too_late_is_a_conflict(fleet: TestFleet, api: AsyncClient) -> None:
    await fleet.add(other)
    _, order = await running_note(fleet)
    requested = await post(api, "/handoff/request", **order)
    await fleet.client.handoffs.withdraw(requested["handoff_id"])
    late = await api.post(f"{PATH}/handoff/{requested['thread_id']}/accept")

    assert (late.status_code, late.json()["facts"]["status"]) == (409, "withdrawn")


async def test_the_asked_agent_of_a_name_answers_and_not_one_whose_name_begins_with_it() -> None:
    asked = ["doc-writer", "doc-00000001", "doc-00000002", "doc-of-a-00000003"]
    control = AskedHandoffs([{"agent": one, "at_ms": 1, "declined": ""} for one in asked])
    kept = Handoffs(control)  # type: ignore[arg-type]
    for name in ("doc", "doc-writer", "doc-of-a", "ada"):
        await kept.accept("w:one.1", agent=name)

    assert control.answered == ["doc-00000002", "doc-writer", "doc-of-a-00000003", "ada"]


NUMBERS = ("fence", "begun_ms", "until_ms", "ended_ms")
ROW: dict[str, Any] = {name: 0 if name in NUMBERS else "" for name in HandoffRow.__slots__}
ROW |= {"state": "requested", "waiting": [], "context": None}


class AskedHandoffs:
    """A control plane with one handoff, for which agents were asked; it notes who answers."""

    def __init__(self, asked: list[dict[str, Any]]) -> None:
        self.asked, self.answered = asked, list[str]()

    async def ask(self, verb: Verb, body: dict[str, Any]) -> dict[str, Any]:
        if verb is not Verb.HANDOFF_SHOW:
            self.answered.append(body["agent"])
        return ROW | {"asked": self.asked}


async def test_a_key_opens_threads_only_as_a_participant(fleet: TestFleet) -> None:
    async with api_of(fleet, access=Key("writer")) as api:
        refused = await api.post(f"{PATH}/threads", json={"participants": ["ada", "writer-0123abcd"]})
        opened = await api.post(f"{PATH}/threads", json={"participants": ["ada", "writer"]})
        (row,) = [row async for row in fleet.client.threads.list()]

    assert (refused.status_code, opened.status_code) == (403, 201)
    assert row.participants == ["ada", "writer"]


@dataclass(frozen=True)
class Key:
    """Access of an operator by one key."""

    name: str

    async def caller(self, _: HTTPConnection) -> Caller:
        return Caller(self.name, Role.OPERATOR)


@pytest.mark.parametrize(
    ("role", "named", "acting"),
    [
        (Role.OPERATOR, None, "words"),
        (Role.OPERATOR, "words", "words"),
        (Role.OPERATOR, "words-1a2b3c4d", "words-1a2b3c4d"),
        (Role.OPERATOR, "words-20261130", None),
        (Role.OPERATOR, "words-of-ada-1a2b3c4d", None),
        (Role.OPERATOR, "words-of-ada", None),
        (Role.OPERATOR, "ada", None),
        (Role.ADMIN, "ada", "ada"),
        (Role.ADMIN, None, "default"),
    ],
)
async def test_a_key_acts_for_itself_and_its_agents_and_an_admin_for_all(
    fleet: TestFleet, role: Role, named: str | None, acting: str | None
) -> None:
    who = Caller("words", role)
    for agent_id, name in (("words-1a2b3c4d", "words"), ("words-of-ada-1a2b3c4d", "words-of-ada")):
        registered = replace(make_registration(agent_id), name=name)
        await fleet.registry.register(registered, Load(status=AgentStatus.IDLE), lease_seconds=60)
    async with services_of(fleet.server, fleet.registry, fleet.client) as services:
        if acting is None:
            with pytest.raises(RequestRefused, match="403"):
                await acting_name(services, who, named)
        else:
            assert await acting_name(services, who, named, default="default") == acting
