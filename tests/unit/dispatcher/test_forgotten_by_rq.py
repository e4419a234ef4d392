"""What RQ shows of workflows that have ended: for a while, and no longer."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Workflow
from coditect.model.capability import Priority
from coditect.wire.control import Verb
from dispatcher.ledger.workflows import remove
from dispatcher.retention import DAY_MS, SHOWN_FAILED_MS, SHOWN_MS
from dispatcher.store.memory import MemoryDatabase
from dispatcher.taskgraph.port import Job, JobState
from tests.unit.dispatcher.broom import Broom, keeping, kept_of
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


async def test_rq_keeps_what_lives_and_for_an_hour_what_failed(broom: Broom) -> None:
    flow = Workflow("two")
    flow.task("work", name="first")
    flow.task("work", name="second")
    definition = flow.definition()
    for workflow, outcome in (("done", completed(1)), ("failed", failed()), ("lives", None)):
        await broom.ledger.start(definition, workflow=workflow)
        names = ("first", "second")
        ended = JobState.FINISHED if outcome is not None else JobState.STARTED
        await broom.graph.create([Job(workflow, node, 0, Priority.P1, "work", (), ended) for node in names])
        if outcome is not None:
            await broom.ledger.play(lambda _, outcome=outcome: outcome)  # type: ignore[misc]
        broom.ledger.published.clear()

    def shown() -> set[str]:
        return {one for one in ("done", "failed", "lives") if broom.graph.state(one, "second") is not None}

    await broom.sweep(after_ms=SHOWN_MS)
    at_once = shown()
    await broom.sweep(after_ms=SHOWN_MS + 1)
    soon = shown()
    await broom.sweep(after_ms=SHOWN_FAILED_MS + 1)

    assert at_once == {"done", "failed", "lives"}
    assert soon == {"failed", "lives"}
    assert shown() == {"lives"}


async def test_what_rq_has_forgotten_is_shown_again_when_it_is_run_again(broom: Broom) -> None:
    flow = Workflow("one")
    flow.task("work", name="only")
    await broom.ledger.start(flow.definition())
    await broom.ledger.play(lambda _: failed())

    await broom.ledger.ask(Verb.RESUME, {"workflow": "w"})

    assert broom.ledger.seen[-1].unshown == ["w"]


async def test_rq_keeps_what_runs_again_however_long_ago_it_ended(broom: Broom) -> None:
    await broom.ledger.start(keeping("1h"))
    await broom.ledger.play(lambda _: failed())
    await broom.graph.create([Job("w", "only", 0, Priority.P1, "work", (), JobState.STARTED)])
    await broom.ledger.ask(Verb.REDRIVE, {"workflow": "w", "node": "only"})

    await broom.sweep(after_ms=8 * DAY_MS)

    assert broom.graph.state("w", "only") is JobState.STARTED


@settings(max_examples=20, deadline=None)
@given(ends=st.lists(st.tuples(st.booleans(), st.integers(0, 90_000)), min_size=1, max_size=60))
async def test_whenever_workflows_end_each_is_forgotten_by_rq_in_its_time(ends: list[tuple[bool, int]]) -> None:
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        flow = Workflow("one")
        flow.task("work", name="only")
        forgotten: set[str] = set()
        ended: dict[str, tuple[bool, int]] = {}
        for number, (fails, pause_ms) in enumerate(ends):
            workflow = f"w{number:02}"
            ledger.now_ms += pause_ms
            await ledger.start(flow.definition(), workflow=workflow)
            await ledger.play(lambda _, fails=fails: failed() if fails else completed(1))  # type: ignore[misc]
            ended[workflow] = fails, ledger.now_ms
            for failing, age_ms in ((False, SHOWN_MS), (True, SHOWN_FAILED_MS)):
                forgotten |= await forgotten_by_now(ledger, ledger.now_ms - age_ms, failed=failing)

            due = {
                one for one, (its, at) in ended.items() if at < ledger.now_ms - (SHOWN_FAILED_MS if its else SHOWN_MS)
            }
            assert forgotten == due


async def forgotten_by_now(ledger: Ledger, before_ms: int, *, failed: bool) -> set[str]:
    forgotten: set[str] = set()
    while True:
        found = await ledger.database.read(lambda tr: remove.shown(tr, 0, before_ms, failed=failed, limit=3))
        if found.cursor is None:
            return forgotten
        forgotten |= set(found.workflows)
        cursor = found.cursor
        await ledger.database.run(lambda tr, cursor=cursor: remove.note_shown(tr, 0, cursor, failed=failed))  # type: ignore[misc]


async def test_rq_forgets_what_is_kept_for_less_than_its_jobs(broom: Broom) -> None:
    broom.ledger.now_ms += DAY_MS
    await broom.ledger.start(keeping("1m"))
    await broom.graph.create([Job("w", "only", 0, Priority.P1, "work", (), JobState.FAILED)])
    await broom.ledger.play(lambda _: failed())

    await broom.sweep(after_ms=60_001)

    assert (await kept_of(broom), broom.graph.state("w", "only")) == ([], None)
