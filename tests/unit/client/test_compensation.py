"""Workflows whose completed nodes are undone, with the real dispatcher and real agents, in virtual time."""

from __future__ import annotations

from typing import Any

import pytest

from coditect import Agent, Retry, TaskFailed, Workflow
from coditect.testing import TestFleet
from coditect.workflow.documents.reader import definition_of
from coditect.workflow.render import draw_text
from coditect.workflow.states import TaskState, WorkflowState


class Desk:
    """An agent that books, cancels what was booked, and fails to charge."""

    def __init__(self) -> None:
        self.undone: list[tuple[str, str]] = []
        self.agent = agent = Agent("desk")

        @agent.capability("place.book")
        async def book(place: dict[str, str]) -> str:
            return f"ticket of {place['what']}"

        @agent.capability("place.cancel")
        async def cancel(done: dict[str, Any]) -> None:
            self.undone.append((done["input"]["what"], done["result"]))

        @agent.capability("card.charge", retry=Retry(max_attempts=1))
        async def charge(card: Any) -> None:
            raise ValueError("no money")


def trip() -> Workflow:
    flow = Workflow("trip")
    hotel = flow.task("place.book", {"what": "hotel"}, name="hotel", compensate="place.cancel")
    flight = flow.task("place.book", {"what": "flight"}, name="flight", after=[hotel], compensate="place.cancel")
    flow.task("card.charge", name="card", after=[flight])
    return flow


async def test_failed_workflow_is_undone_and_says_how_it_ended() -> None:
    desk = Desk()
    async with TestFleet(agents=[desk.agent]) as fleet:
        run = await fleet.start(trip())
        events = [event.type async for event in run.events()]
        with pytest.raises(TaskFailed, match="no money"):
            await run.result()
        row, nodes = await run.overview(), [node async for node in run.nodes()]

    assert desk.undone == [("flight", "ticket of flight"), ("hotel", "ticket of hotel")]
    assert (row.state, row.ended_as) == (WorkflowState.COMPENSATED, WorkflowState.FAILED)
    told = {node.name: (node.kind, node.state) for node in nodes}
    assert told["hotel.compensate"] == ("compensation", TaskState.COMPLETED)
    assert [one for one in events if one.startswith("workflow")][-2:] == [
        "workflow.compensating",
        "workflow.compensated",
    ]
    drawn = draw_text(definition_of(row.name, nodes), {node.name: node.state for node in nodes})
    assert "task place.book: compensation completed" in drawn
