"""The counters of what finished without a person: once for each task and workflow, as it ended last."""

from __future__ import annotations

from typing import Any

from coditect.wire.control import Verb
from coditect.workflow.builder import Workflow
from dispatcher.coordination.approvals import report
from dispatcher.ledger.audit import autonomy
from dispatcher.ledger.workflows.queries import approvals
from tests.unit.dispatcher.ledger.nodes.test_approval_policy import answer, deploying, opened
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, one_node


async def told(ledger: Ledger) -> dict[str, Any]:
    return await ledger.read(report, since=1, until=ledger.now_ms + 1)


def needed(found: dict[str, Any]) -> list[tuple[str, str, int]]:
    return [(one["decision"], one["rule"], one["count"]) for one in found["needed"]]


def counts(finished: int, completed: int, by_hand: int) -> dict[str, int]:
    return {"finished": finished, "completed": completed, "by_hand": by_hand}


async def test_what_completes_without_a_person_counts_once(ledger: Ledger) -> None:
    flow = Workflow("many")
    flow.task("bind", after=[flow.map("work", [1, 2, 3], name="each")], name="last")
    await ledger.start(flow)
    await ledger.play(lambda _: completed())

    found = await told(ledger)

    assert found["workflows"] == counts(1, 1, 0)
    assert found["capabilities"] == {"bind": counts(1, 1, 0), "work": counts(3, 3, 0)}, "a map is none of its tasks"
    assert (found["needed"], found["needed_is_whole"]) == ([], True)


async def test_a_person_s_answer_counts_for_task_and_workflow_and_an_open_question_is_told() -> None:
    async with opened() as ledger:
        for workflow, share in (("w", 50), ("v", 5), ("open", 50)):
            await ledger.start(deploying(share), workflow=workflow)
        await answer(ledger, "ship")
        await ledger.play(lambda _: completed())
        found = await told(ledger)

    assert found["workflows"] == counts(2, 2, 1)
    assert found["capabilities"] == {"deploy.release": counts(2, 2, 1)}
    assert needed(found) == [("granted", "large", 1), ("asked", "large", 1)]


async def test_a_node_that_asks_again_after_an_answer_needs_a_person_again() -> None:
    async with opened() as ledger:
        await ledger.start(deploying(50))
        await answer(ledger, "ship", granted=False)
        ledger.now_ms += 1
        await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "ship", "input": {"share": 60}, "by": "ada"})
        found = await told(ledger)

    assert sorted(needed(found)) == [("asked", "large", 1), ("denied", "large", 1), ("redriven", "", 1)]


async def test_a_grant_by_the_policy_and_a_denial_at_a_timeout_are_no_person_s() -> None:
    async with opened() as ledger:
        await ledger.start(deploying(50))
        await ledger.pass_time(3_600)
        found = await told(ledger)

    assert (found["workflows"], found["capabilities"]) == (counts(1, 0, 0), {"deploy.release": counts(1, 0, 0)})


async def test_a_redrive_takes_the_first_end_back_and_is_a_person_s(ledger: Ledger) -> None:
    flow = Workflow("again")
    flow.task("then", after=[flow.task("work", name="only")], name="after")
    await ledger.start(flow)
    await ledger.play(lambda _: failed())
    first = await told(ledger)
    ledger.now_ms += 2 * autonomy.COUNTED_SPAN_MS
    await ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "only", "by": "ada"})
    await ledger.play(lambda _: completed())
    found = await told(ledger)

    assert (first["workflows"], first["capabilities"]) == (counts(1, 0, 0), {"work": counts(1, 0, 0)})
    assert found["workflows"] == counts(1, 1, 1)
    assert found["capabilities"] == {"then": counts(1, 1, 0), "work": counts(1, 1, 1)}
    (redriven,) = found["needed"]
    assert (redriven["decision"], redriven["by"], redriven["why"]) == ("redriven", "ada", "it had ended: handler_error")


async def test_a_hand_in_a_sub_workflow_counts_for_its_root_and_what_is_canceled_nowhere(ledger: Ledger) -> None:
    child = Workflow("child")
    child.approval("Now?", name="gate")
    flow = Workflow("parent")
    flow.workflow(child, name="inner")
    await ledger.start(one_node(), workflow="dropped")
    await ledger.ask(Verb.CANCEL, {"workflow": "dropped"})
    canceled = await told(ledger)
    await ledger.start(flow)
    (row,) = (await ledger.read(approvals))["approvals"]
    await ledger.ask(Verb.ANSWER, {"workflow": row["workflow"], "node": "gate", "granted": True, "by": "ada"})

    assert (canceled["workflows"], canceled["capabilities"], canceled["needed"]) == (counts(0, 0, 0), {}, [])
    assert (await told(ledger))["workflows"] == counts(1, 1, 1)


async def test_old_counters_are_removed_by_the_hour(ledger: Ledger) -> None:
    await ledger.start_one()
    await ledger.play(lambda _: completed())
    hour_ms = ledger.now_ms // autonomy.COUNTED_SPAN_MS * autonomy.COUNTED_SPAN_MS

    kept = await ledger.database.run(lambda tr: autonomy.sweep(tr, before_ms=hour_ms))
    removed = await ledger.database.run(lambda tr: autonomy.sweep(tr, before_ms=hour_ms + autonomy.COUNTED_SPAN_MS))

    assert (kept, removed) == (0, 2)
    assert (await told(ledger))["workflows"] == counts(0, 0, 0)
