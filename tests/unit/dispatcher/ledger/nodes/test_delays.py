"""Tasks with a delay, in the ledger: the test plays time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from coditect.errors import InputError, InvalidWorkflow, NewerVersion
from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import DUE, NODES, TIMERS
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


def later(delay: Any, **options: Any) -> Workflow:
    flow = Workflow("later")
    flow.task("work", name="task", delay=delay, **options)
    return flow


async def timers_left(ledger: Ledger) -> list[bytes]:
    found = await ledger.database.read(lambda tr: tr.get_ranges([TIMERS.range(), DUE.range()]))
    return [key for rows in found for key, _ in rows]


@pytest.mark.parametrize("delay", ["200s", 200, "1970-01-01T00:20:00Z", "1970-01-01T01:20:00+01:00"])
async def test_a_task_is_published_when_its_delay_is_over(ledger: Ledger, delay: Any) -> None:
    await ledger.start(later(delay).definition())

    await ledger.pass_time(199)
    waiting, before = await ledger.node("task"), list(ledger.published)
    await ledger.pass_time(1)
    published = len(ledger.published)
    await ledger.play(lambda _: completed(1))

    assert (waiting.state, waiting.ready_ms, before) == (TaskState.WAITING, 1_200_000, [])
    assert published == 1
    assert await ledger.state() is WorkflowState.COMPLETED
    assert await timers_left(ledger) == []


async def test_an_instant_that_has_passed_delays_nothing(ledger: Ledger) -> None:
    await ledger.start(later("1970-01-01T00:00:01Z").definition())

    assert len(ledger.published) == 1


async def test_time_limits_count_from_the_end_of_the_delay(ledger: Ledger) -> None:
    await ledger.start(later("1h", deadline="10s", start_within="5s").definition())

    await ledger.pass_time(3_600)

    (publication,) = ledger.published
    limits = publication.task.limits
    assert (limits.deadline_ms, limits.start_by_ms) == (4_610_000, 4_605_000)


async def test_a_canceled_task_is_never_published_and_leaves_no_timer(ledger: Ledger) -> None:
    await ledger.start(later("1h").definition())

    await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    await ledger.pass_time(7_200)

    assert (await ledger.node("task")).state is TaskState.CANCELED
    assert (ledger.published, await timers_left(ledger)) == ([], [])


async def test_a_task_of_a_paused_workflow_waits_on_after_its_delay(ledger: Ledger) -> None:
    await ledger.start(later("1h").definition())
    await ledger.ask(Verb.PAUSE, {"workflow": "w"})

    await ledger.pass_time(3_600)
    meanwhile = (await ledger.node("task")).state, len(ledger.published)
    await ledger.ask(Verb.RESUME, {"workflow": "w"})

    assert meanwhile == (TaskState.READY, 0)
    assert len(ledger.published) == 1


async def test_only_the_first_attempt_is_delayed(ledger: Ledger) -> None:
    await ledger.start(later("1h", retry={"max_attempts": 1}).definition())
    await ledger.pass_time(3_600)
    await ledger.play(lambda _: failed())

    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "task"})

    assert (await ledger.node("task")).state is TaskState.PUBLISHED


@pytest.mark.parametrize("delay", ["soon", "2026-12-24T08:00:00", "4000d", True, 0])
def test_a_wrong_delay_is_refused(delay: Any) -> None:
    with pytest.raises(InputError):
        later(delay)


def test_a_map_has_no_delay() -> None:
    with pytest.raises(InputError, match="A map has no delay"):
        Workflow("later").map("work", [1], delay="1h")


async def test_a_map_with_a_delay_is_refused_by_the_ledger(ledger: Ledger) -> None:
    node = {"map": "work", "over": [1], "limit": 1, "delay": "1h"}

    with pytest.raises(InvalidWorkflow, match="There is no field 'delay' here"):
        await ledger.ask(Verb.START, {"workflow": "w", "name": "n", "count": 1, "nodes": {"each": node}})


async def test_a_dispatcher_that_knows_no_delay_refuses_the_task_rather_than_complete_it_when_it_is_due(
    ledger: Ledger,
) -> None:
    await ledger.start(later("200s").definition())
    row = await ledger.database.read(lambda tr: tr.get(NODES.pack(("w", "task"))))
    assert row is not None

    with pytest.raises(NewerVersion):
        replace(versions.NODE, steps=()).unpack(row)
