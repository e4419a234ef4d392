"""Workflows that run with a real RQ: what it shows is what the ledger has, and it can resolve a graph alone."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest
from rq.job import Job
from rq.results import Result

from coditect.client.workflow_run import Run
from coditect.model.retry import Retry
from coditect.workflow.builder import Workflow
from dispatcher.ports import ClaimPaths
from dispatcher.scheduling.scheduler import PATIENCE_SECONDS
from dispatcher.taskgraph.keys import job_id
from dispatcher.taskgraph.port import Change, JobState
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.integration.graph.counted import Rq
from tests.integration.graph.plane import CAPABILITY, SHARDS, Plane, layered
from tests.support import eventually

pytestmark = pytest.mark.servers

NO_WAY = ClaimPaths(on_record=False, from_rq=False, from_index=False)
BY_RQ = ClaimPaths(on_record=False, from_rq=True, from_index=False)


async def as_shown(hall: Plane, run: Run, finished: int) -> dict[str, int]:
    """What the ledger has, in the words of `rq info`, with so many finished."""
    ledger = await hall.ledger(run)
    states = {"queued": JobState.QUEUED, "executing": JobState.STARTED, "failed": JobState.FAILED}
    return {word: ledger[state] for word, state in states.items()} | {"finished": finished}


class Untold(RedisTaskGraph):
    """Nobody tells it that a job is queued: whatever is, its own script released."""

    async def tell(self, changes: Sequence[Change]) -> None:
        await super().tell([change for change in changes if change.state is not JobState.QUEUED])


async def under_way(hall: Plane, run: Run, number: int) -> bool:
    return (await hall.ledger(run))[JobState.STARTED] == number


async def has_counts(run: Run, expected: Mapping[str, int]) -> None:
    async def counted() -> bool:
        return (await run.overview()).counts == expected

    await eventually(counted)


async def executed(hall: Plane, number: int) -> None:
    await eventually(lambda: len(hall.executed) == number)


async def test_rq_info_shows_what_the_ledger_has_whenever_a_run_stands_still(hall: Plane, rq: Rq) -> None:
    async with hall.dispatcher(ClaimPaths()):
        run = await hall.client.start(layered(10, 100))
        for number in (0, 150, 600):
            hall.permit(number - len(hall.executed))
            await executed(hall, number)
            await rq.agrees(lambda number=number: as_shown(hall, run, number))  # type: ignore[misc]
        hall.permit(400)
        await run.wait(timeout="60s")

        await rq.agrees(lambda: as_shown(hall, run, 1_000))


async def test_without_the_bridge_nothing_is_dispatched_and_with_it_rq_alone_resolves_the_graph(
    hall: Plane, rq: Rq
) -> None:
    hall.permit(30)
    async with hall.dispatcher(NO_WAY):
        run = await hall.client.start(layered(3, 10))
        await eventually(lambda: rq.counts()["queued"] == 10)

    async with hall.dispatcher(BY_RQ):
        await run.wait(timeout="100s")

    assert sorted(hall.executed) == sorted(f"n{layer}_{at}" for layer in range(3) for at in range(10))


async def test_run_stands_still_while_the_bridge_does_and_goes_on_with_it(hall: Plane, rq: Rq) -> None:
    async with hall.dispatcher(BY_RQ):
        run = await hall.client.start(layered(3, 100))
        hall.permit(50)
        await executed(hall, 50)

    async with hall.dispatcher(NO_WAY):
        hall.permit(250)
        await eventually(lambda: under_way(hall, run, 0))
        before = await hall.ledger(run)
        assert before[JobState.QUEUED] > 0
        await rq.agrees(lambda: as_shown(hall, run, before[JobState.FINISHED]))
        await asyncio.sleep(2 * PATIENCE_SECONDS)
        assert await hall.ledger(run) == before
        assert len(hall.executed) == before[JobState.FINISHED] < 300

    async with hall.dispatcher(BY_RQ):
        await run.wait(timeout="100s")

    assert len(set(hall.executed)) == len(hall.executed) == 300


async def test_rq_alone_finds_what_may_run_next(hall: Plane) -> None:
    hall.permit(30)
    async with hall.dispatcher(BY_RQ, reconcile_seconds=3_600, graph_of=Untold):
        run = await hall.client.start(layered(3, 10))

        assert await run.wait(timeout="100s") == "completed"


async def test_every_state_of_a_node_is_counted_where_the_table_says(hall: Plane, rq: Rq) -> None:
    never, later = Retry(max_attempts=1), Retry(max_attempts=9, first="1h", cap="1h")
    flow = Workflow("states")
    done = flow.task(CAPABILITY, "done", name="done")
    flow.task(CAPABILITY, after=[done], when="input.wanted", name="skipped")
    failed = flow.task(CAPABILITY, "failed", after=[done], retry=never, name="failed")
    flow.task(CAPABILITY, after=[failed], name="behind_failed")
    gate = flow.approval("Go on?", after=[done], name="gate")
    flow.task(CAPABILITY, after=[gate], name="behind_gate")
    retried = flow.task(CAPABILITY, "retried", after=[done], retry=later, name="retried")
    works = flow.task(CAPABILITY, "works", after=[failed], on_failure="allow", name="works")
    for number in range(3):
        flow.task(CAPABILITY, after=[retried, works], name=f"blocked_{number}")
    hall.failing |= {"failed", "retried"}
    async with hall.dispatcher(ClaimPaths()):
        run = await hall.client.start(flow, {"wanted": False})
        hall.permit(3)
        ended = {"completed": 1, "failed": 2, "skipped": 1}
        waiting = {"blocked": 4, "awaiting_approval": 1, "retry_wait": 1}
        await has_counts(run, {**ended, **waiting, "working": 1})
        in_rq = {"finished": 1, "failed": 2, "canceled": 1}
        await eventually(lambda: rq.states() == {**in_rq, "deferred": 4, "scheduled": 2, "started": 1})

        await run.cancel()

        await has_counts(run, {**ended, "canceled": 7})
        await eventually(lambda: rq.states() == {**in_rq, "canceled": 8})


@pytest.mark.parametrize("attempts", [1, 9], ids=["failed", "to be tried again"])
async def test_child_does_not_run_when_its_failed_parent_is_deleted_and_stock_rq_releases_it(
    hall: Plane, rq: Rq, attempts: int
) -> None:
    """Of one that has ended the child has, too: that is compared. The other child is proposed, and refused."""
    flow = Workflow("lost")
    lost = flow.task(CAPABILITY, "lost", retry=Retry(max_attempts=attempts, first="1h", cap="1h"), name="lost")
    other = flow.task(CAPABILITY, "other", name="other")
    flow.task(CAPABILITY, "child", after=[lost, other], name="child")
    flow.task(CAPABILITY, "late", after=[other], name="late")
    hall.failing.add("lost")
    before, after = ("failed", "failed") if attempts == 1 else ("scheduled", "deferred")
    async with hall.dispatcher(BY_RQ, reconcile_seconds=0.1 if attempts == 1 else 3_600):
        run = await hall.client.start(flow)
        hall.permit(2)
        await eventually(lambda: rq.status(run, "lost") == before and rq.status(run, "other") == "finished")
        await eventually(lambda: rq.status(run, "late") == "started")

        rq.client.delete(f"rq:job:{job_id(run.id, 'lost')}")
        rq.release(run, "other", "child")

        hall.permit(9)
        await eventually(lambda: rq.status(run, "late") == "finished" and rq.status(run, "child") == after)
        assert hall.executed.count("late") == 1
        assert "child" not in hall.executed


async def test_stock_rq_shows_what_a_node_ended_with(hall: Plane, rq: Rq) -> None:
    hall.permit(6)
    hall.failing.add("n1_1")
    async with hall.dispatcher(ClaimPaths()):
        run = await hall.client.start(layered(2, 3))
        assert await run.wait(timeout="100s") == "failed"
        await eventually(lambda: rq.counts()["finished"] == 5 and rq.counts()["failed"] == 1)

    results = [rq.job(run, node).latest_result() for node in ("n0_0", "n1_0", "n1_1")]
    assert [one.return_value for one in results if one is not None] == ["n0_0", "n1_0", None]
    assert results[2] is not None
    assert results[2].type is Result.Type.FAILED
    assert results[2].exc_string == "handler_error: ValueError: n1_1 is to fail"


async def test_wiped_redis_is_written_anew_while_the_run_goes_on(hall: Plane, rq: Rq) -> None:
    async with hall.dispatcher(ClaimPaths()):
        run = await hall.client.start(layered(4, 20))
        hall.permit(30)
        await executed(hall, 30)

        rq.client.flushall()
        hall.permit(10)
        await executed(hall, 40)

        await rq.agrees(lambda: as_shown(hall, run, 40))
        hall.permit(40)
        await run.wait(timeout="100s")
        await rq.agrees(lambda: as_shown(hall, run, 80))

    assert len(set(hall.executed)) == 80


async def test_job_that_stock_rq_cancels_cancels_its_workflow_and_an_ended_one_stays(hall: Plane, rq: Rq) -> None:
    async with hall.dispatcher(BY_RQ):
        # while a shard that was just taken is compared, what people do may be overwritten
        await eventually(lambda: rq.client.exists(*[f"coditect:epoch:{shard}" for shard in range(SHARDS)]) == SHARDS)
        run = await hall.client.start(layered(2, 10))
        await eventually(lambda: rq.counts()["executing"] == 10)

        rq.job(run, "n1_0").cancel()

        assert await run.wait(timeout="100s") == "canceled"
        await rq.agrees(lambda: as_shown(hall, run, 0))

        hall.permit(20)
        run = await hall.client.start(layered(2, 5))
        await run.wait(timeout="100s")
        await rq.agrees(lambda: as_shown(hall, run, 10))
        rq.job(run, "n1_0").cancel()
        assert rq.counts()["finished"] == 9
        await rq.agrees(lambda: as_shown(hall, run, 10))


async def test_job_that_stock_rq_requeues_is_redriven_and_its_workflow_completes(hall: Plane, rq: Rq) -> None:
    hall.permit(100)
    hall.failing.add("n0_0")
    async with hall.dispatcher(ClaimPaths()):
        run = await hall.client.start(layered(2, 5))
        assert await run.wait(timeout="100s") == "failed"
        await eventually(lambda: rq.counts()["failed"] > 0)

        hall.failing.clear()
        rq.job(run, "n0_0").requeue()

        await eventually(lambda: len(hall.executed) == 11)
        assert await run.wait(timeout="100s") == "completed"
        await rq.agrees(lambda: as_shown(hall, run, 10))


async def test_job_that_somebody_deletes_while_nothing_happens_comes_back(hall: Plane, rq: Rq) -> None:
    async with hall.dispatcher(ClaimPaths(), reconcile_seconds=0.1):
        run = await hall.client.start(layered(2, 5))
        await rq.agrees(lambda: as_shown(hall, run, 0))

        rq.job(run, "n1_0").delete()

        await eventually(lambda: Job.exists(job_id(run.id, "n1_0"), connection=rq.client))
        hall.permit(10)
        assert await run.wait(timeout="100s") == "completed"
        await rq.agrees(lambda: as_shown(hall, run, 10))


async def test_job_that_is_lost_while_it_runs_comes_back_with_its_outcome(hall: Plane, rq: Rq) -> None:
    async with hall.dispatcher(ClaimPaths(), reconcile_seconds=0.1):
        run = await hall.client.start(layered(2, 5))
        await rq.agrees(lambda: as_shown(hall, run, 0))

        rq.client.delete(f"rq:job:{job_id(run.id, 'n0_0')}")
        hall.permit(5)

        await eventually(lambda: Job.exists(job_id(run.id, "n0_0"), connection=rq.client))
        hall.permit(5)
        assert await run.wait(timeout="100s") == "completed"
        await eventually(lambda: rq.counts()["finished"] == 10)
