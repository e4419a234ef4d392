"""Workflows that run with a real RQ: what it shows is what the ledger has, and it can resolve a graph alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

import pytest
from rq.job import Job

from coditect.aio.supervisor import Supervisor
from coditect.client.workflow_run import WorkflowRun
from coditect.model.retry import Retry
from coditect.workflow.builder import Workflow
from dispatcher.taskgraph.port import Change, JobState
from dispatcher.taskgraph.records import job_id
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.integration.graph.plane import CAPABILITY, COUNTED, SHARDS, Claims, Plane, Rq, layered
from tests.support import eventually, patient

pytestmark = pytest.mark.servers


async def as_shown(hall: Plane, run: WorkflowRun, finished: int) -> dict[str, int]:
    """What the ledger has, in the words of `rq info`, with so many finished."""
    ledger = await hall.ledger(run)
    states = {"queued": JobState.QUEUED, "executing": JobState.STARTED, "failed": JobState.FAILED}
    return {word: ledger[state] for word, state in states.items()} | {"finished": finished}


class Untold(RedisTaskGraph):
    """Nobody tells it that a job is queued: whatever is, its own script released."""

    async def tell(self, changes: Sequence[Change]) -> None:
        await super().tell([change for change in changes if change.state is not JobState.QUEUED])


async def has_counts(run: WorkflowRun, expected: Mapping[str, int]) -> None:
    async def counted() -> bool:
        return (await run.overview()).counts == expected

    await eventually(counted)


async def executed(hall: Plane, number: int) -> None:
    await eventually(lambda: len(hall.executed) == number)


async def test_rq_info_shows_what_the_ledger_has_whenever_a_run_stands_still(hall: Plane, rq: Rq) -> None:
    async with hall.dispatcher():
        run = await hall.client.start(layered(10, 100))
        for number in (0, 150, 600):
            hall.permit(number - len(hall.executed))
            await executed(hall, number)
            await rq.agrees(lambda number=number: as_shown(hall, run, number))  # type: ignore[misc]
        hall.permit(400)
        await run.wait(timeout="60s")

        await rq.agrees(lambda: as_shown(hall, run, 1_000))


async def test_rq_alone_resolves_the_graph_by_the_bridge(hall: Plane, rq: Rq) -> None:
    hall.permit(30)
    async with hall.dispatcher(Claims.NONE):
        run = await hall.client.start(layered(3, 10))
        await eventually(lambda: rq.counts()["queued"] == 10)
    async with hall.dispatcher(Claims.BY_RQ, reconcile_seconds=3_600, graph_of=Untold):
        assert await run.wait(timeout="100s") == "completed"
    assert sorted(hall.executed) == sorted(f"n{layer}_{at}" for layer in range(3) for at in range(10))


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
    async with hall.dispatcher():
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
async def test_child_of_a_deleted_parent_that_stock_rq_releases_stays(hall: Plane, rq: Rq, attempts: int) -> None:
    """Of one that has ended the child has, too: that is compared. The other child is proposed, and refused."""
    flow = Workflow("lost")
    lost = flow.task(CAPABILITY, "lost", retry=Retry(max_attempts=attempts, first="1h", cap="1h"), name="lost")
    other = flow.task(CAPABILITY, "other", name="other")
    flow.task(CAPABILITY, "child", after=[lost, other], name="child")
    flow.task(CAPABILITY, "late", after=[other], name="late")
    hall.failing.add("lost")
    before, after = ("failed", "failed") if attempts == 1 else ("scheduled", "deferred")
    async with hall.dispatcher(Claims.BY_RQ, reconcile_seconds=0.1 if attempts == 1 else 3_600):
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


async def test_wiped_redis_is_written_anew_while_the_run_goes_on(hall: Plane, rq: Rq) -> None:
    async with hall.dispatcher():
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
    async with hall.dispatcher(Claims.BY_RQ):
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
    async with hall.dispatcher():
        run = await hall.client.start(layered(2, 5))
        assert await run.wait(timeout="100s") == "failed"
        await eventually(lambda: rq.counts()["failed"] > 0)

        hall.failing.clear()
        rq.job(run, "n0_0").requeue()

        await eventually(lambda: len(hall.executed) == 11)
        assert await run.wait(timeout="100s") == "completed"
        await rq.agrees(lambda: as_shown(hall, run, 10))


@pytest.mark.parametrize("node", ["n1_0", "n0_0"], ids=["waits", "runs"])
async def test_job_that_somebody_deletes_comes_back_with_its_outcome(hall: Plane, rq: Rq, node: str) -> None:
    async with hall.dispatcher(reconcile_seconds=0.1):
        run = await hall.client.start(layered(2, 5))
        await rq.agrees(lambda: as_shown(hall, run, 0))

        rq.job(run, node).delete()
        await eventually(lambda: Job.exists(job_id(run.id, node), connection=rq.client))

        hall.permit(10)
        assert await run.wait(timeout="100s") == "completed"
        await rq.agrees(lambda: as_shown(hall, run, 10))


NODES = 1_000
LAG_SECONDS = 1.0


class Reached(NamedTuple):
    """How many nodes have come so far. No number falls while a run goes on: a node only goes forward."""

    queued: int
    started: int
    ended: int

    @classmethod
    def by(cls, counts: Mapping[str, int]) -> Reached:
        """By the words of `rq info`."""
        ended = counts["finished"] + counts["failed"]
        started = ended + counts["executing"]
        return cls(started + counts["queued"], started, ended)


class Look(NamedTuple):
    """What was seen at some instant between two."""

    begun: float
    done: float
    reached: Reached


async def keep_looking(count: Callable[[], Awaitable[Mapping[str, int]]], looks: list[Look]) -> None:
    now = asyncio.get_running_loop().time
    while True:
        begun = now()
        counts = await count()
        looks.append(Look(begun, now(), Reached.by(counts)))
        await asyncio.sleep(0.02)


def assert_within(look: Look, ledger: list[Look], lag_seconds: float) -> bool:
    """It is neither behind what the ledger had a second before nor before what it had a second later.

    Returns whether there was anything to compare it with.

    RQ's tools count one place after the other, in the order in which a node goes through them: one that goes on
    meanwhile is counted twice, so of what they have too many only the ended say something.
    """
    before = [one.reached for one in ledger if one.done <= look.begun - lag_seconds][-1:]
    after = [one.reached for one in ledger if one.begun >= look.done + lag_seconds][:1]
    for least in before:
        assert all(has >= had for has, had in zip(look.reached, least, strict=True)), (look, least)
    for most in after:
        assert look.reached.ended <= most.ended, (look, most)
    return bool(before and after)


@pytest.mark.proof
async def test_rq_is_within_a_second_of_the_ledger_all_through_a_run(hall: Plane, rq: Rq) -> None:
    ledger, classes, info = list[Look](), list[Look](), list[Look]()
    lag_seconds = patient(LAG_SECONDS)

    async def by_ledger() -> Mapping[str, int]:
        states = await hall.ledger(run)
        return {word: states[JobState(state)] for word, state in COUNTED.items()}

    async with hall.dispatcher(), Supervisor() as background:
        run = await hall.client.start(layered(10, NODES // 10))
        background.start(keep_looking(by_ledger, ledger), name="ledger")
        background.start(keep_looking(lambda: asyncio.to_thread(rq.counts), classes), name="classes")
        background.start(keep_looking(rq.info, info), name="rq info")
        while len(hall.executed) < NODES:
            # `rq info` is a process: it may take its time
            if len(hall.executed) < NODES // 2 or any(look.reached.ended for look in info):
                hall.permit(12)
            await asyncio.sleep(0.03 * lag_seconds)  # so that it lasts some seconds
        assert await run.wait(timeout="60s") == "completed"

    compared = [assert_within(look, ledger, lag_seconds) for look in classes + info]
    assert any(compared), "it proves nothing"
    for looks, number in ((ledger, 10), (classes, 10), (info, 1)):
        amid = [one for one in looks if 0 < one.reached.ended < NODES]
        assert len(amid) >= number
    assert ledger[-1].begun - ledger[0].begun > 2 * lag_seconds
