"""What every task graph promises about the jobs that it takes out of its queues."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coditect.model.capability import Priority
from dispatcher.taskgraph.port import BATCH, JobState, TaskGraph, looks
from tests.contract.graph.scene import CAPABILITY, Scene


async def test_adoption_takes_the_oldest_first_and_no_more_than_there_is_room(scene: Scene) -> None:
    await scene.create(*[scene.job(f"n{number}") for number in range(5)])

    assert await scene.adopt(2) == ["n0", "n1"]
    assert await scene.counts() == {"started": 2, "queued": 3}
    assert await scene.adopt(0) == []
    assert await scene.adopt(9) == ["n2", "n3", "n4"]
    assert await scene.adopt(9) == []


async def test_adoption_takes_the_urgent_first(scene: Scene) -> None:
    await scene.create(*[scene.job(level.value, level=level) for level in reversed(Priority)])

    assert [await scene.adopt(1) for _ in Priority] == [["p0"], ["p1"], ["p2"]]


async def test_adoption_shares_the_room_among_the_shards_and_gives_what_is_left_to_any(scene: Scene) -> None:
    await scene.create(*[scene.job(f"a{number}") for number in range(20)])
    await scene.create(*[scene.job(f"b{number}", shard=1) for number in range(3)])
    shards = [scene.shard, scene.shard + 1]

    even = [one.node[0] for one in await scene.graph.adopt(shards, {CAPABILITY: 4})]
    rest = [one.node[0] for one in await scene.graph.adopt(shards, {CAPABILITY: 10})]

    assert sorted(even) == ["a", "a", "b", "b"]
    assert sorted(rest) == ["a"] * 9 + ["b"]


async def test_adoption_takes_a_batch_at_most(scene: Scene) -> None:
    await scene.create(*[scene.job(f"n{number}") for number in range(BATCH + 1)])

    assert len(await scene.adopt(10 * BATCH)) == BATCH
    assert len(await scene.adopt(10 * BATCH)) == 1


async def test_adoption_of_no_shard_takes_nothing(graph: TaskGraph) -> None:
    assert await graph.adopt([], {CAPABILITY: 10}) == []


async def test_adoption_takes_of_each_capability_what_has_room_and_the_rest_holds_up_nobody(scene: Scene) -> None:
    jobs = [scene.job(f"full{number}", capability="full") for number in range(3)]
    await scene.create(*jobs, *[scene.job(f"n{number}") for number in range(3)], scene.job("o", capability="other"))

    taken = await scene.graph.adopt([scene.shard], {CAPABILITY: 2, "other": 5, "full": 0})

    assert [(one.node, one.capability) for one in taken] == [
        ("n0", CAPABILITY),
        ("n1", CAPABILITY),
        ("o", "other"),
    ]
    assert await scene.counts() == {"started": 3, "queued": 4}
    assert not await scene.graph.difference([replace(job, state=JobState.QUEUED) for job in jobs])
    assert await scene.adopt(9, full=2) == ["full0", "full1", "n2"], "in their places"


@pytest.mark.parametrize("shards", [1, 2])
async def test_what_stands_behind_more_than_one_call_looks_at_is_found_by_one_that_follows(
    scene: Scene, shards: int
) -> None:
    full = [scene.job(f"full{number}", capability="full") for number in range(3 * looks(1))]
    await scene.create(*full, scene.job("n", shard=shards - 1), *full[:1])
    if shards == 2:
        more = [scene.job(f"more{number}", capability="full", shard=1) for number in range(3 * looks(1))]
        await scene.create(*more, scene.job("last", shard=1))
    calls, found = 0, list[str]()

    while len(found) < shards:
        taken = await scene.graph.adopt([scene.shard, scene.shard + shards - 1][:shards], {CAPABILITY: 1})
        found += [one.node for one in taken]
        calls += 1
        assert calls < 30, found

    assert await scene.adopt(0, full=3) == ["full0", "full1", "full2"], "those keep their places"


async def test_full_capability_of_a_high_level_does_not_hold_up_another_of_a_low_one(scene: Scene) -> None:
    urgent = [scene.job(f"full{number}", capability="full", level=Priority.P0) for number in range(2 * looks(1))]
    await scene.create(*urgent, scene.job("low", level=Priority.P2))

    assert await scene.adopt(1) == ["low"]


async def test_urgent_job_of_a_capability_goes_first_also_from_behind_a_full_one(scene: Scene) -> None:
    await scene.create(
        scene.job("low", level=Priority.P2),
        *[scene.job(f"full{number}", capability="full", level=Priority.P0) for number in range(looks(1) - 1)],
        scene.job("urgent", level=Priority.P0),
    )

    assert [await scene.adopt(1), await scene.adopt(1)] == [["urgent"], ["low"]]


async def test_adopted_job_that_nobody_claims_is_put_back_by_being_told_its_state(scene: Scene) -> None:
    await scene.create(scene.job("a"))
    assert await scene.adopt() == ["a"]

    difference = await scene.graph.difference([scene.job("a", state=JobState.QUEUED)])
    await scene.graph.tell(difference.changes)

    assert await scene.counts() == {"queued": 1}
    assert await scene.adopt() == ["a"]
