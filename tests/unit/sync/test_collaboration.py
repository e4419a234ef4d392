"""Threads, handoffs and decisions without an event loop, on a control plane that lives on the client's loop."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from coditect import Agent, Context, HandoffOffer, Workflow
from coditect.aio.clock import SystemClock
from coditect.collaboration.handoffs import HandoffRow
from coditect.errors import InputError, NotFound
from coditect.sync import SyncClient
from dispatcher.program import running_dispatcher
from tests.unit.sync.scene import SECONDS, SurroundedClient

desk, shy = Agent("desk"), Agent("shy")


@desk.capability("note.write", timeout="5m")
async def write(text: str, ctx: Context) -> str:
    """Hand the note off, or say how the handoff ended."""
    return str((await ctx.hand_off("note.print", reason="too long", context=[text])).why)


@shy.capability("note.print")
async def print_note(text: str) -> str:
    """Print the note."""
    return text


@shy.on_handoff
async def decide(offer: HandoffOffer) -> bool | str:
    """Decline everything."""
    return f"not {offer.input}"


class GovernedClient(SurroundedClient):
    """A client that brings a dispatcher and two agents along."""

    async def surround(self) -> None:
        own, owner = await self.link("dispatcher-1"), "dispatcher-1"
        plane = running_dispatcher(broker=own, registry=self._found, clock=SystemClock(), owner=owner)
        await self._around.enter_async_context(plane)
        await self.run_agents(desk, shy)


@pytest.fixture
def client() -> Iterator[SyncClient]:
    with GovernedClient().sync() as opened:
        yield opened


def test_people_ask_answer_and_read_in_a_thread(client: SyncClient) -> None:
    thread = client.threads.open("ada", by="bob", title="which?")
    question = thread.say("this or that?", type="question")
    theirs = client.threads.get(thread.id, by="ada")
    theirs.answer(theirs.message(question), "that")
    theirs.close("answered")

    assert [(one.sender, one.value) for one in thread.listen()] == [("ada", "that")], "it ends with the thread"
    assert [one.value for one in thread.history()] == ["this or that?", "that"]
    assert thread.show().read["bob"] == 2
    assert [row.title for row in client.threads.list(participant="ada")] == ["which?"]
    assert list(client.threads.list(open_only=True)) == []
    with pytest.raises(InputError):
        thread.say("too late")


def test_a_handoff_that_all_declined_is_listed_and_shown(client: SyncClient) -> None:
    handle = client.submit("note.write", "a letter", durable=True)
    handle.result(str, timeout=SECONDS)

    (row,) = client.handoffs.list(task=handle.task_id)
    shown: HandoffRow = client.handoffs.get(row.handoff)

    assert (shown.state, list(shown.reasons.values()), shown.context) == ("declined", ["not a letter"], ["a letter"])
    assert client.handoffs.withdraw(row.handoff, by="ada").state == "declined", "what has ended stays so"
    with pytest.raises(NotFound):
        client.handoffs.get("unknown")


def test_a_persons_answer_is_in_the_decision_the_trail_and_the_report(client: SyncClient) -> None:
    flow = Workflow("ask")
    flow.approval("Now?", name="gate")
    run = client.start(flow)
    until = time.monotonic() + SECONDS
    while not list(client.approvals.list()):
        assert time.monotonic() < until
    run.grant("gate", by="ada")
    run.wait(timeout=SECONDS)

    assert client.approvals.get(f"{run.id}:gate").decision["by"] == "ada"
    assert [(row.decision, row.by) for row in client.approvals.audit(workflow=run.id)][-1] == ("granted", "ada")
    assert client.approvals.autonomy(since_ms=1, until_ms=2**42).workflows.by_hand == 1
