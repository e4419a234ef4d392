"""What every task graph promises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coditect.model.capability import Priority
from dispatcher.taskgraph.port import BATCH, JobState
from tests.contract.graph.scene import Scene

DEFERRED, SCHEDULED, QUEUED, STARTED, FINISHED, FAILED, CANCELED = JobState


async def test_job_without_predecessors_is_queued_and_the_others_are_deferred(scene: Scene) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a"), scene.job("c", "a", "b"))

    assert await scene.counts() == {"queued": 1, "deferred": 2}
    assert await scene.adopt() == ["a"]


async def test_job_is_queued_when_its_last_predecessor_is_finished(scene: Scene) -> None:
    await scene.create(scene.job("a"), scene.job("b"), scene.job("c", "a", "b"))

    await scene.tell(FINISHED, "a")
    assert await scene.counts() == {"queued": 1, "finished": 1, "deferred": 1}

    await scene.tell(FINISHED, "b")
    assert await scene.counts() == {"finished": 2, "queued": 1}
    assert await scene.adopt() == ["c"]


@pytest.mark.parametrize("state", [FAILED, CANCELED, SCHEDULED, STARTED, QUEUED])
async def test_job_stays_deferred_when_a_predecessor_does_anything_but_finish(scene: Scene, state: JobState) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a"))

    await scene.tell(state, "a")

    assert (await scene.counts())["deferred"] == 1


async def test_created_again_a_job_stays_as_it_is(scene: Scene) -> None:
    jobs = [scene.job("a"), scene.job("b", "a")]
    await scene.create(*jobs)
    assert await scene.adopt() == ["a"]

    assert await scene.graph.create([*jobs, scene.job("c")]) == jobs

    assert await scene.counts() == {"started": 1, "deferred": 1, "queued": 1}
    assert await scene.adopt() == ["c"]
    assert await scene.adopt() == []


async def test_job_that_is_created_after_its_predecessors_have_finished_is_queued(scene: Scene) -> None:
    await scene.create(scene.job("a", state=FINISHED), scene.job("b"))

    await scene.create(scene.job("c", "a"), scene.job("d", "a", "b"))

    assert await scene.adopt() == ["b", "c"]
    assert await scene.counts() == {"finished": 1, "started": 2, "deferred": 1}


@pytest.mark.parametrize("state", [*JobState])
async def test_job_may_be_created_in_any_state(scene: Scene, state: JobState) -> None:
    await scene.create(scene.job("a", state=state))

    assert await scene.counts() == {state.value: 1}
    assert not await scene.graph.difference([scene.job("a", state=state)])
    assert await scene.requests() == []


@pytest.mark.parametrize("last", [*JobState])
@pytest.mark.parametrize("first", [*JobState])
async def test_job_goes_from_any_state_to_any_other_and_is_counted_once(
    scene: Scene, first: JobState, last: JobState
) -> None:
    await scene.create(scene.job("root"), scene.job("a", "root", state=first))

    await scene.tell(last, "a")
    await scene.tell(last, "a")

    assert await scene.counts() == ({"queued": 2} if last is QUEUED else {"queued": 1, last.value: 1})
    assert not await scene.graph.difference([scene.job("a", state=last)])
    assert await scene.requests() == []


async def test_change_of_a_dependent_in_the_same_call_stands_above_its_release(scene: Scene) -> None:
    await scene.create(scene.job("a"), *[scene.job(name, "a") for name in ("started", "deferred", "canceled", "free")])

    await scene.graph.tell(
        [
            scene.change("started", STARTED),
            scene.change("a", FINISHED),
            scene.change("deferred", DEFERRED),
            scene.change("canceled", CANCELED),
        ]
    )

    assert await scene.counts() == {"finished": 1, "started": 1, "deferred": 1, "canceled": 1, "queued": 1}
    assert await scene.adopt() == ["free"]


async def test_repeated_finish_queues_nothing_twice(scene: Scene) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a"))
    await scene.tell(FINISHED, "a")
    assert await scene.adopt() == ["b"]

    await scene.tell(FINISHED, "a", "a")

    assert await scene.counts() == {"finished": 1, "started": 1}


async def test_redriven_parents_release_their_dependent_anew(scene: Scene) -> None:
    await scene.create(scene.job("a"), scene.job("b"), scene.job("c", "a", "b"))
    await scene.tell(FINISHED, "b")
    await scene.tell(FAILED, "a")
    await scene.tell(CANCELED, "c")

    await scene.tell(DEFERRED, "c")
    await scene.tell(STARTED, "a")
    await scene.tell(FINISHED, "a")

    assert await scene.counts() == {"finished": 2, "queued": 1}


async def test_changes_of_unknown_jobs_change_nothing(scene: Scene) -> None:
    await scene.create(scene.job("a"))
    unknown = [scene.change(f"x{number}", FINISHED) for number in range(2)]

    await scene.graph.tell([unknown[0], scene.change("a", FINISHED), unknown[1]])

    assert await scene.counts() == {"finished": 1}


async def test_child_of_a_predecessor_that_was_lost_does_not_run(scene: Scene) -> None:
    await scene.create(scene.job("a"), scene.job("b"), scene.job("c", "a", "b"))
    await scene.tell(FAILED, "a")
    await scene.graph.remove(scene.workflow, ["a"])

    await scene.tell(FINISHED, "b")

    assert await scene.counts() == {"finished": 1, "deferred": 1}


async def test_wide_fan_out_is_released_in_full(scene: Scene) -> None:
    children = [f"n{number}" for number in range(2_500)]
    await scene.create(scene.job("a"), *[scene.job(child, "a") for child in children], scene.job("end", *children))

    await scene.tell(FINISHED, "a")
    assert await scene.counts() == {"finished": 1, "queued": 2_500, "deferred": 1}

    await scene.tell(FINISHED, *children)
    assert await scene.counts() == {"finished": 2_501, "queued": 1}
    assert await scene.adopt() == ["end"]


async def test_removed_jobs_leave_nothing(scene: Scene) -> None:
    states = {state.value: state for state in JobState}
    await scene.create(scene.job("root"), *[scene.job(name, "root", state=state) for name, state in states.items()])

    await scene.graph.remove(scene.workflow, ["root", *states, "never there"])

    assert await scene.counts() == {}
    assert await scene.adopt() == []


async def test_difference_names_the_missing_and_those_in_another_state(scene: Scene) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a"), scene.job("c", "a"))
    await scene.tell(FINISHED, "a")
    expected = [
        scene.job("a", state=FINISHED),
        scene.job("b", "a", state=QUEUED),
        scene.job("c", "a", state=STARTED),
        scene.job("d", "a", state=QUEUED),
    ]

    difference = await scene.graph.difference(expected)
    assert difference.missing == (expected[3],)
    assert difference.changes == (replace(scene.change("c", STARTED), anew=True),)

    await scene.graph.create(difference.missing)
    await scene.graph.tell(difference.changes)
    assert not await scene.graph.difference(expected)
    assert await scene.counts() == {"finished": 1, "queued": 2, "started": 1}


def other_of_its_shard(scene: Scene) -> Scene:
    """Another workflow."""
    other = Scene(scene.graph)
    other.shard = scene.shard
    return other


@pytest.mark.parametrize("state", JobState)
async def test_workflow_is_unfinished_as_long_as_one_of_its_jobs_is(scene: Scene, state: JobState) -> None:
    other = other_of_its_shard(scene)
    await scene.create(scene.job("a", state=state), scene.job("b", "a", state=DEFERRED), scene.job("a", shard=1))
    await other.create(other.job("a", level=Priority.P0))
    assert {*(await scene.graph.unfinished(scene.shard)).workflows} == {scene.workflow, other.workflow}

    await scene.tell(CANCELED, "b")

    unfinished = set() if state in (FINISHED, FAILED, CANCELED) else {scene.workflow}
    assert {*(await scene.graph.unfinished(scene.shard)).workflows} == unfinished | {other.workflow}


async def test_unfinished_jobs_are_found_behind_many(scene: Scene) -> None:
    other = other_of_its_shard(scene)
    await scene.create(*[scene.job(f"n{at}") for at in range(2 * BATCH)])
    await other.create(other.job("z"))

    assert {*(await scene.graph.unfinished(scene.shard)).workflows} == {scene.workflow, other.workflow}


async def test_shard_is_known_once_it_was_remembered(scene: Scene) -> None:
    assert not await scene.graph.known([scene.shard])

    await scene.graph.remember(scene.shard)

    assert await scene.graph.known([scene.shard])
    assert not await scene.graph.known([scene.shard + 1])


async def test_highest_incarnation_of_a_store_is_remembered(scene: Scene) -> None:
    store = f"store-{scene.workflow}"

    told = [await scene.graph.incarnation(store, begun) for begun in (0, 3, 7, 5, 0)]

    assert told == [0, 0, 3, 7, 7]
    assert await scene.graph.incarnation(f"other-{scene.workflow}") == 0


async def test_nodes_of_a_map_are_jobs_of_their_own(scene: Scene) -> None:
    names = ["build[0]", "build[1]", "build"]
    await scene.create(*[scene.job(name) for name in names], scene.job("end", *names))

    assert await scene.adopt() == names
    await scene.tell(FINISHED, *names)
    assert await scene.adopt() == ["end"]
