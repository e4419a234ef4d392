"""Triggers of a whole fleet, by its client: events start workflows and send signals, each once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coditect import Agent, Context, From, Workflow
from coditect.broker.topology import Queue, Topology
from coditect.errors import InputError, InvalidTask, InvalidWorkflow, NotFound
from coditect.model.message import Event, Message
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.events import event_message
from coditect.wire.json import MAX_JSON_LEVELS
from coditect.workflow.rows import WorkflowRow
from tests.unit.dispatcher.test_restarted_broker import LastingFleet


def clerk(seen: list[Any]) -> Agent:
    agent = Agent("clerk")

    @agent.capability("note.down")
    async def note(value: Any) -> None:
        seen.append(value)

    @agent.capability("repo.push")
    async def push(name: str, ctx: Context) -> None:
        await ctx.emit("repo.pushed", repo=name)

    return agent


def noting() -> Workflow:
    flow = Workflow("noting")
    flow.task("note.down", From("input"))
    return flow


async def publish(fleet: TestFleet, message: Message, type_: str = "repo.pushed") -> None:
    await fleet.client._broker.publish(message, exchange=routing.EVENTS, routing_key=type_)


def pushed(identity: str, source: str = "/git", **data: Any) -> Message:
    return event_message(Event("repo.pushed", source, identity, 1_767_225_600_000, "", data))


async def runs(fleet: TestFleet) -> list[WorkflowRow]:
    return [row async for row in fleet.client.workflows.list()]


async def test_each_event_starts_the_workflow_with_a_part_of_it() -> None:
    seen: list[Any] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        triggers = fleet.client.triggers
        repo = {"name": From("event.data.repo"), "type": From("event.type")}
        added = await triggers.create("pushed", "repo.*", noting(), repo)
        await fleet.client.emit("repo.pushed", repo="a")
        await (await fleet.client.submit("repo.push", "b")).result(timeout="10s")
        await fleet.client.emit("other.pushed", repo="c")
        await fleet.advance("10s")
        (row,) = [one async for one in triggers.list()]

    assert seen == [{"name": name, "type": "repo.pushed"} for name in "ab"]
    assert (added.state, added.runs, row.runs, row.failed, row.workflow) == ("active", 0, 2, 0, "noting")
    assert row.last_run is not None


async def test_an_event_that_comes_again_starts_nothing_more() -> None:
    seen: list[Any] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        await fleet.client.triggers.create("pushed", "repo.pushed", noting(), From("event.id"))
        for identity, source in [("1", "/git"), ("1", "/git"), ("1", "/other"), ("2", "/git"), ("1", "/git")]:
            await publish(fleet, pushed(identity, source))
        await fleet.advance("10s")
        found = await runs(fleet)
        (row,) = [one async for one in fleet.client.triggers.list()]

    assert sorted(seen) == ["1", "1", "2"]
    assert row.runs == 3
    assert sorted(row.key or "" for row in found) == [
        "trigger:pushed:/git:1", "trigger:pushed:/git:2", "trigger:pushed:/other:1"
    ]  # fmt: skip


async def test_a_condition_lets_events_by() -> None:
    seen: list[Any] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        await fleet.client.triggers.create(
            "main", "repo.pushed", noting(), From("event.data.n"), when="event.data.branch == 'main'"
        )
        for number, branch in enumerate(["main", "fix", "main"]):
            await publish(fleet, pushed(str(number), branch=branch, n=number))
        await fleet.advance("10s")

    assert seen == [0, 2]


async def test_an_event_sends_a_signal_once_to_the_workflow_that_it_names() -> None:
    flow = Workflow("waiting")
    flow.signal("paid", name="first")
    flow.signal("paid", name="second", timeout="1m", after=["first"])
    async with TestFleet(agents=[clerk([])]) as fleet:
        run = await fleet.client.start(flow)
        await fleet.client.triggers.create(
            "paid", "order.paid", None, From("event.data.euro"), signal="paid", to="event.data.order"
        )
        event = Event("order.paid", "/shop", "7", 1_767_225_600_000, "", {"order": run.id, "euro": 12})
        await publish(fleet, event_message(event), "order.paid")
        await publish(fleet, event_message(event), "order.paid")
        await fleet.advance("10s")
        value = await run.result(node="first", timeout="1s")
        await fleet.advance("2m")
        state = await run.state()

    assert (value, state) == (12, "failed")  # the same event counts once: the second node waits in vain


async def test_a_paused_trigger_lets_events_pass_and_a_removed_one_leaves_nothing() -> None:
    seen: list[Any] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        triggers = fleet.client.triggers
        await triggers.create("pushed", "repo.pushed", noting(), From("event.data.n"), paused=True)
        await fleet.client.emit("repo.pushed", n=1)
        await triggers.resume("pushed")
        await fleet.client.emit("repo.pushed", n=2)
        await fleet.advance("5s")
        paused = await triggers.pause("pushed")
        await fleet.client.emit("repo.pushed", n=3)
        await triggers.resume("pushed")
        await fleet.client.emit("repo.pushed", n=4)
        await fleet.advance("5s")
        await triggers.delete("pushed")
        await fleet.client.emit("repo.pushed", n=5)
        await fleet.advance("5s")
        left = await fleet.client._broker.stats(routing.trigger_queue("pushed"))
        with pytest.raises(NotFound):
            await triggers.delete("pushed")

    assert seen == [2, 4]
    assert (paused.state, left) == ("paused", None)


async def test_what_is_no_event_is_a_dead_letter_and_holds_up_no_other() -> None:
    seen: list[Any] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        await fleet.client.triggers.create("pushed", "repo.pushed", noting(), From("event.data.n"))
        good = pushed("1", n=1)
        for message in (
            Message(b"{}"),
            Message(b"\xff", headers=good.headers),
            Message(b"{}", headers={**good.headers, "ce-time": "yesterday"}),
            Message(b"[" * 100_000, headers=good.headers),
        ):
            await publish(fleet, message)
        await publish(fleet, good)
        await fleet.advance("10s")
        dead = await fleet.client._broker.stats(routing.UNROUTED_QUEUE)

    assert seen == [1]
    assert dead is not None
    assert dead.messages == 4


async def test_events_of_strangers_are_settled_one_by_one_and_the_next_one_starts_its_workflow() -> None:
    seen: list[Any] = []
    headers = pushed("1").headers
    odd: list[dict[str, Any]] = [
        {"ce-id": b"\xff"}, {"ce-id": 7}, {"ce-id": {"a": 1}}, {"ce-id": "x" * 5_000}, {"ce-id": "a\nb"}, {"ce-id": ""},
        {"ce-source": "\x00"}, {"ce-time": None, "ce-id": "timeless"},
        {"ce-time": "0001-01-01T00:00:00+14:00"}, {"ce-time": "9999-12-31T23:59:59Z"},
        {"ce-type": "trigger.failed"}, {"ce-subject": ["a"]},
    ]  # fmt: skip
    deep = b'{"a":' * 400 + b"1" + b"}" * 400
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        await fleet.client.triggers.create("pushed", "repo.pushed", noting())
        for one in odd:
            await publish(fleet, Message(b'{"n": 1}', headers={**headers, **one}))
        for number, body in enumerate([deep, b"[1]", b"7", b"", b"null", b'{"a": "' + b"x" * 900_000 + b'"}']):
            await publish(fleet, Message(body, headers={**headers, "ce-id": f"body-{number}"}))
        await publish(fleet, pushed("last", n="last"))
        await fleet.advance("60s")
        left = fleet.server.queue(routing.trigger_queue("pushed"))
        (row,) = [one async for one in fleet.client.triggers.list()]
        assert (left.stats.messages, left.in_hand) == (0, 0)

    assert any(one["id"] == "last" for one in seen)
    assert (row.runs, row.failed) == (len(seen), 1)  # what is nested too deep for an input
    assert len(seen) == len(odd) - 1 - 2 + 5 + 1  # without a trigger's own event, and two that are the first again


async def test_an_event_for_which_an_expression_fails_is_counted_and_told() -> None:
    seen: list[Any] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        triggers = fleet.client.triggers
        await triggers.create("pushed", "repo.pushed", noting(), From("join(',', event.data.names)"))
        await publish(fleet, pushed("1", names=7))
        await fleet.advance("5s")
        (bad,) = [one async for one in triggers.list()]
        await publish(fleet, pushed("2", names=["a", "b"]))
        await fleet.advance("5s")
        (good,) = [one async for one in triggers.list()]

    assert seen == ["a,b"]
    assert (bad.runs, bad.failed) == (0, 1)
    assert "An expression could not be evaluated" in bad.reason
    assert (good.runs, good.failed, good.reason) == (1, 1, "")


@pytest.mark.parametrize(
    ("body", "error", "sentence"),
    [
        ({"name": "a b"}, InvalidTask, "A trigger's name is"),
        ({"event": "repo..pushed"}, InvalidTask, "This is no pattern of event types"),
        ({"event": "re*"}, InvalidTask, "This is no pattern of event types"),
        ({"value": From("input.a")}, InputError, "The expression reads what is not there"),
        ({"value": From("event.")}, InputError, "This is no JMESPath expression"),
        ({"when": "results.a"}, InputError, "The expression reads what is not there"),
        ({"signal": "go", "to": "event.id"}, InvalidTask, "A trigger has either a workflow or a signal"),
        ({"workflow": None}, InvalidTask, "A trigger has either a workflow or a signal"),
        ({"workflow": None, "signal": "go"}, InvalidTask, r"A trigger sends a signal to .* \(--signal, --to\)"),
        ({"to": "event.id"}, InvalidTask, r"A trigger sends a signal to .* \(--signal, --to\)"),
    ],
)
async def test_wrong_triggers_are_refused(body: dict[str, Any], error: type[InputError], sentence: str) -> None:
    given: dict[str, Any] = {"name": "pushed", "event": "repo.pushed", "workflow": noting(), "value": None} | body
    async with TestFleet(agents=[clerk([])]) as fleet:
        with pytest.raises(error, match=sentence):
            await fleet.client.triggers.create(
                given.pop("name"), given.pop("event"), given.pop("workflow"), given.pop("value"), **given
            )


async def test_a_trigger_of_a_known_name_and_one_of_a_wrong_workflow_are_refused() -> None:
    wrong = Workflow("wrong")
    wrong.task("note.down", From("results.nothing"))
    async with TestFleet(agents=[clerk([])]) as fleet:
        await fleet.client.triggers.create("pushed", "repo.pushed", noting())
        with pytest.raises(InputError, match="There is a trigger of this name"):
            await fleet.client.triggers.create("pushed", "repo.pushed", noting())
        with pytest.raises(InvalidWorkflow):
            await fleet.client.triggers.create("wrong", "repo.pushed", wrong)


async def test_a_trigger_hears_events_again_after_its_queue_was_deleted() -> None:
    seen: list[Any] = []
    async with TestFleet(agents=[clerk(seen)]) as fleet:
        await fleet.client.triggers.create("pushed", "repo.pushed", noting(), From("event.id"))
        await publish(fleet, pushed("1"))
        await fleet.advance("5s")
        await fleet.client._broker.delete_queue(routing.trigger_queue("pushed"))
        await fleet.advance("30s")
        await publish(fleet, pushed("2"))
        await fleet.advance("5s")

    assert seen == ["1", "2"]


async def test_a_signal_that_cannot_be_sent_leaves_its_event_as_a_dead_letter_and_holds_up_no_other() -> None:
    flow = Workflow("paying")
    flow.signal("paid", name="first")
    async with TestFleet() as fleet:
        run = await fleet.client.start(flow)
        await fleet.client.triggers.create(
            "paid", "order.paid", None, From("event.data"), signal="paid", to="event.subject"
        )
        event = event_message(Event("order.paid", "/shop", "1", 1_767_225_600_000, run.id, {"euro": 1}))
        deep = (
            b'{"euro":' + b"[" * 2 * MAX_JSON_LEVELS + b"]" * 2 * MAX_JSON_LEVELS + b"}"
        )  # read, but not written again
        await publish(fleet, replace(event, headers={**event.headers, "ce-id": "deep"}, body=deep), "order.paid")
        await publish(fleet, event, "order.paid")
        await run.result(timeout="10s")
        await fleet.advance("10s")
        (row,) = [one async for one in fleet.client.triggers.list()]
        left = fleet.server.queue(routing.trigger_queue("paid"))
        dead = await fleet.client._broker.stats(routing.UNROUTED_QUEUE)

        assert (left.stats.messages, left.in_hand, row.runs) == (0, 0, 2)
    assert dead is not None and dead.messages == 1


async def test_a_trigger_whose_queue_cannot_be_opened_holds_up_no_other() -> None:
    seen: list[Any] = []
    async with LastingFleet(agents=[clerk(seen)]) as fleet:
        broker = fleet.client._broker
        for name in ("a", "b"):
            await fleet.client.triggers.create(name, "repo.pushed", noting(), From("event.id"))
        fleet.kill("dispatcher")
        await broker.delete_queue(routing.trigger_queue("a"))
        await broker.declare(Topology(queues=(Queue(routing.trigger_queue("a"), max_length=1),)))
        await fleet.restart("dispatcher")
        await fleet.advance("2s")
        await publish(fleet, pushed("1"))
        await fleet.advance("5s")

    assert seen == ["1"]
