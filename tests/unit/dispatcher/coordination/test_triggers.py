"""Triggers in the ledger: what an event starts, and what a removed trigger leaves."""

from __future__ import annotations

from typing import Any

import pytest

from coditect.errors import InputError, InvalidTask, NotFound
from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from coditect.workflow.documents.document import to_document
from dispatcher.coordination import triggers
from dispatcher.ledger.keyspace import TRIGGERS, VALUES, WORKFLOWS
from dispatcher.ledger.rows import WorkflowRecord
from tests.unit.dispatcher.lone_ledger import Ledger


def building() -> dict[str, Any]:
    flow = Workflow("build", description="of a repository", labels={"team": "x"}, retention="1h")
    flow.task("work", name="only")
    return to_document(flow.definition())


async def add(ledger: Ledger, name: str = "pushed") -> Any:
    return await ledger.ask(Verb.TRIGGER_ADD, {"trigger": name, "event": "repo.pushed", "workflow": building()})


async def fire(ledger: Ledger, identity: str = "1", name: str = "pushed") -> Any:
    event = {"type": "repo.pushed", "source": "/git", "id": identity, "data": {}}
    return await ledger.ask(Verb.TRIGGER_FIRE, {"trigger": name, "event": event})


async def heads(ledger: Ledger) -> list[WorkflowRecord]:
    rows = await ledger.rows(WORKFLOWS)
    return [WorkflowRecord.unpack(row) for _, row in rows]


async def test_a_started_workflow_is_as_its_document_says(ledger: Ledger) -> None:
    await add(ledger)

    told = await fire(ledger)

    (head,) = await heads(ledger)
    assert told["new"] is True
    assert (head.name, head.description, head.labels, head.keep_ms) == (
        "build", "of a repository", {"team": "x"}, 3_600_000
    )  # fmt: skip
    assert head.key == "trigger:pushed:/git:1"


async def test_an_event_counts_once_for_each_trigger_however_late_it_comes_again(ledger: Ledger) -> None:
    await add(ledger)
    await add(ledger, "other")
    first = await fire(ledger)

    again = []
    for seconds in (0, 1, 86_400):
        await ledger.pass_time(seconds)
        again.append(await fire(ledger))
    other = await fire(ledger, name="other")

    assert again == [{"workflow": first["workflow"], "new": False}] * 3
    assert other["new"] is True
    assert len(await heads(ledger)) == 2


async def test_a_paused_trigger_starts_nothing_and_a_removed_one_leaves_nothing(ledger: Ledger) -> None:
    await add(ledger)
    await ledger.ask(Verb.TRIGGER_PAUSE, {"trigger": "pushed"})
    paused = await fire(ledger)
    await ledger.ask(Verb.TRIGGER_REMOVE, {"trigger": "pushed"})

    assert paused == {"reason": "paused"}
    left = await ledger.database.read(lambda tr: tr.get_ranges([TRIGGERS.range(), VALUES.range(), WORKFLOWS.range()]))
    assert left == [[], [], []]
    with pytest.raises(NotFound):
        await fire(ledger)


async def test_there_are_so_many_triggers_at_most(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "MOST_TRIGGERS", 2)
    await add(ledger, "a")
    await add(ledger, "b")

    with pytest.raises(InputError, match="There are too many triggers"):
        await add(ledger, "c")


@pytest.mark.parametrize("event", [None, "repo.pushed", ["a"]])
async def test_what_is_no_event_is_refused(ledger: Ledger, event: Any) -> None:
    await add(ledger)

    with pytest.raises(InvalidTask, match="An event is an object"):
        await ledger.ask(Verb.TRIGGER_FIRE, {"trigger": "pushed", "event": event})
