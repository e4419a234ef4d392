"""Handoffs with what strangers send, and what comes too late: no row that cannot be read, and nothing out of turn."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from coditect import Workflow
from coditect.errors import InvalidTask, NotFound
from coditect.wire.control import Verb
from coditect.wire.json import MOST_LEVELS
from coditect.workflow.states import TaskState
from dispatcher.coordination.handoffs import handoffs, queries
from dispatcher.ledger.handlers.requests import ShardChange
from tests.unit.dispatcher.handoffs import OTHERS, accept, ask_others, decline, offered, offers, withdraw
from tests.unit.dispatcher.ledger.test_batch import one_node
from tests.unit.dispatcher.lone_ledger import Ledger, few_steps

ID = "w:one.1"


@pytest.fixture
async def begun(ledger: Ledger) -> Ledger:
    """A task that was offered to the first of three others."""
    await ledger.start(one_node())
    await ask_others(ledger)
    return ledger


async def test_an_input_in_the_blob_store_is_not_part_of_the_offer(ledger: Ledger) -> None:
    flow = Workflow("large")
    claim = {"$claim": {"sha256": "a" * 64, "bytes": 5_000_000}}
    flow.task("work", claim, name="one")
    await ledger.start(flow.definition())
    await ask_others(ledger)

    ((_, offer),) = offers(ledger.seen[-1])
    assert (offer["whole"], offer["input"]) == (False, None)


async def test_an_agent_that_declines_when_it_was_passed_over_has_no_other_one_asked(begun: Ledger) -> None:
    await begun.pass_time(11)
    told = await decline(begun, ID, OTHERS[0], "too late")

    assert offered(begun) == list(OTHERS[:2])
    assert [one["declined"] for one in told["asked"]] == ["too late", ""]


async def test_a_task_of_a_workflow_that_is_being_canceled_is_no_agent_s_any_more(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = Workflow("several")
    for name in ("a", "b", "one"):
        flow.task("work", name=name)
    await ledger.start(flow.definition())
    await ask_others(ledger, fence=(await ledger.node("one")).fence)
    ledger.goes_on = False
    few_steps(monkeypatch, 1)
    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    assert (await ledger.states())["one"] is TaskState.WORKING

    assert (await accept(ledger, ID))["state"] == "expired"
    assert len(ledger.published) == 3


async def test_a_context_that_could_not_be_read_again_is_refused(ledger: Ledger) -> None:
    await ledger.start(one_node())
    context: Any = "deep"
    for _ in range(MOST_LEVELS - 20):
        context = [context]

    with pytest.raises(InvalidTask, match="nested too deep"):
        await ask_others(ledger, context=context)
    assert (await ask_others(ledger, ticket="t2"))["state"] == "requested"


async def test_long_reasons_of_all_that_decline_fit_into_the_row(ledger: Ledger) -> None:
    others = [f"agent-{number:02}" for number in range(handoffs.MOST_CANDIDATES)]
    await ledger.start(one_node())
    await ask_others(ledger, context="x" * 60_000, candidates=others)

    for agent in others:
        told = await decline(ledger, ID, agent, "\x01\U0001f600" * 1_000)

    assert (told["state"], len(told["asked"])) == ("declined", len(others))


@pytest.mark.parametrize("number", ["9" * 5_000, "9" * 700, "0x1", "-1", "²"])
async def test_a_number_that_no_handoff_has_is_not_found(begun: Ledger, number: str) -> None:
    for verb in (Verb.HANDOFF_ACCEPT, Verb.HANDOFF_WITHDRAW):
        change = handoffs.VERBS[verb]
        assert isinstance(change, ShardChange)
        with pytest.raises(NotFound):
            change.shard_key({"handoff": f"w:one.{number}"})
            await begun.ask(verb, {"handoff": f"w:one.{number}", "agent": OTHERS[0], "by": "ada"})


@pytest.mark.parametrize("agent", [["x"], {"a": 1}])
async def test_a_list_for_what_is_no_agent_is_refused(begun: Ledger, agent: Any) -> None:
    with pytest.raises(InvalidTask):
        await begun.database.read(partial(queries.list_handoffs, body={"agent": agent}))


async def test_a_list_is_read_in_pages_of_some_bytes(ledger: Ledger) -> None:
    await ledger.start(one_node())
    for number in range(20):
        handoff = (await ask_others(ledger, ticket=f"t{number}", context="x" * 60_000))["handoff"]
        await withdraw(ledger, handoff)

    pages: list[int] = []
    after: str | None = None
    while after is not None or not pages:
        page = await ledger.database.read(partial(queries.list_handoffs, body={"after": after}))
        pages.append(len(page["handoffs"]))
        after = page["next"]

    assert (pages[0], sum(pages)) == (5, 20)
