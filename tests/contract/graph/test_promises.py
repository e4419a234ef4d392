"""What every task graph promises: jobs, adoption, stock tools in the hands of people, losses and outages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from chaos.simulated_task_graph import MemoryTaskGraph
from coditect.model.capability import Priority
from dispatcher.taskgraph.port import BATCH, JobState, RequestKind, TaskGraphUnavailable, looks
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import CAPABILITY, Scene
from tests.integration.graph.stock import Stock
from tests.integration.registry.private_redis import run_private_redis

DEFERRED, SCHEDULED, QUEUED, STARTED, FINISHED, FAILED, CANCELED = JobState


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


async def test_created_again_a_job_stays_as_it_is_and_one_behind_what_has_finished_is_queued(scene: Scene) -> None:
    jobs = [scene.job("a"), scene.job("b", "a")]
    await scene.create(*jobs, scene.job("done", state=FINISHED))
    assert await scene.adopt() == ["a"]
    more = [scene.job("c"), scene.job("d", "done"), scene.job("e", "done", "a")]
    assert await scene.graph.create([*jobs, *more]) == jobs
    assert await scene.counts() == {"started": 1, "deferred": 2, "queued": 2, "finished": 1}
    assert await scene.adopt() == ["c", "d"]
    assert await scene.adopt() == []


@pytest.mark.parametrize("last", [*JobState])
@pytest.mark.parametrize("first", [*JobState])
async def test_job_of_any_state_is_counted_once(scene: Scene, first: JobState, last: JobState) -> None:
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


async def test_redriven_parents_release_their_dependent_anew(scene: Scene) -> None:
    await scene.create(scene.job("a"), scene.job("b"), scene.job("c", "a", "b"))
    await scene.tell(FINISHED, "b")
    await scene.tell(FAILED, "a")
    await scene.tell(CANCELED, "c")

    await scene.tell(DEFERRED, "c")
    await scene.tell(STARTED, "a")
    await scene.tell(FINISHED, "a")

    assert await scene.counts() == {"finished": 2, "queued": 1}


async def test_repeated_finish_and_changes_of_unknown_jobs_queue_nothing(scene: Scene) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a"))
    unknown = [scene.change(f"x{number}", FINISHED) for number in range(2)]
    await scene.graph.tell([unknown[0], scene.change("a", FINISHED), unknown[1]])
    assert await scene.adopt() == ["b"]
    await scene.tell(FINISHED, "a", "a")
    assert await scene.counts() == {"finished": 1, "started": 1}


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

    assert expected[2].as_change() == replace(scene.change("c", STARTED), anew=True)
    assert await scene.mend(*expected) == expected[2:]
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


async def test_a_shard_and_the_highest_incarnation_of_a_store_are_remembered(scene: Scene) -> None:
    assert not await scene.graph.known([scene.shard])
    await scene.graph.remember(scene.shard)
    assert await scene.graph.known([scene.shard])
    assert not await scene.graph.known([scene.shard + 1])
    store = f"store-{scene.workflow}"
    told = [await scene.graph.incarnation(store, begun) for begun in (0, 3, 7, 5, 0)]
    assert told == [0, 0, 3, 7, 7]
    assert await scene.graph.incarnation(f"other-{scene.workflow}") == 0


async def test_adoption_takes_the_oldest_first_and_no_more_than_there_is_room(scene: Scene) -> None:
    await scene.create(*[scene.job(f"n{number}") for number in range(5)])
    assert await scene.adopt(2) == ["n0", "n1"]
    assert await scene.counts() == {"started": 2, "queued": 3}
    assert await scene.adopt(0) == []
    assert await scene.graph.adopt([], {CAPABILITY: 10}) == []
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


async def test_adoption_takes_of_each_capability_what_has_room_and_the_rest_holds_up_nobody(scene: Scene) -> None:
    jobs = [scene.job(f"full{number}", capability="full") for number in range(3)]
    await scene.create(*jobs, *[scene.job(f"n{number}") for number in range(3)], scene.job("o", capability="other"))

    taken = await scene.graph.adopt([scene.shard], {CAPABILITY: 2, "other": 5, "full": 0})

    assert [(one.node, one.capability) for one in taken] == [("n0", CAPABILITY), ("n1", CAPABILITY), ("o", "other")]
    assert await scene.counts() == {"started": 3, "queued": 4}
    assert not await scene.graph.difference([replace(job, state=QUEUED) for job in jobs])
    assert await scene.adopt(9, full=2) == ["full0", "full1", "n2"], "in their places"


@pytest.mark.parametrize("shards", [1, 2])
async def test_what_stands_behind_many_is_found_by_a_call_that_follows(scene: Scene, shards: int) -> None:
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

    await scene.mend(scene.job("a", state=QUEUED))

    assert await scene.counts() == {"queued": 1}
    assert await scene.adopt() == ["a"]


class Hands(NamedTuple):
    scene: Scene
    cancel: Callable[[str], object]
    requeue: Callable[[str], object]
    stray: Callable[[str], object]


@pytest.fixture
async def hands(graph_url: str) -> AsyncIterator[Hands]:
    if not graph_url:
        memory = MemoryTaskGraph()
        scene = Scene(memory)
        by = scene.workflow
        yield Hands(
            scene,
            lambda node: memory.cancel(by, node),
            lambda node: memory.requeue(by, node),
            lambda node: memory.stray(by, node),
        )
        return
    async with RedisTaskGraph(graph_url, worker="dispatcher-1", timeout_seconds=10) as graph:
        scene = Scene(graph)
        with Redis.from_url(graph_url) as client:
            stock = Stock(client, scene)
            yield Hands(
                scene,
                lambda node: stock.fetch(node).cancel(),
                lambda node: stock.fetch(node).requeue(),
                lambda _: stock.work(),
            )


@pytest.mark.parametrize("state", [state for state in JobState if state is not CANCELED])
async def test_cancel_of_a_job_in_any_state_is_asked_for_until_it_is_told(hands: Hands, state: JobState) -> None:
    scene = hands.scene
    await scene.create(scene.job("root"), scene.job("a", "root", state=state))

    hands.cancel("a")

    assert await scene.counts() == {"queued": 1, "canceled": 1}
    assert await scene.requests() == [scene.request("a", RequestKind.CANCEL)] == await scene.requests()
    assert await scene.graph.difference([scene.job("a", state=CANCELED)])
    await scene.tell(CANCELED, "a")
    assert await scene.requests() == []
    assert not await scene.graph.difference([scene.job("a", state=CANCELED)])


@pytest.mark.parametrize("adopted", [False, True], ids=["queued", "adopted"])
@pytest.mark.parametrize("told", [STARTED, FAILED])
async def test_requeue_of_a_failed_job_is_asked_for_until_told(hands: Hands, adopted: bool, told: JobState) -> None:
    scene = hands.scene
    await scene.create(scene.job("a", state=FAILED))
    hands.requeue("a")
    if adopted:
        assert await scene.adopt() == []
    assert await scene.requests() == [scene.request("a", RequestKind.REQUEUE)]
    assert not (await scene.graph.unfinished(scene.shard)).workflows
    await scene.tell(told, "a")
    assert await scene.requests() == []
    assert await scene.counts() == {told.value: 1}
    assert [*(await scene.graph.unfinished(scene.shard)).workflows] == [scene.workflow] * (told is STARTED)


async def test_job_that_a_stock_worker_took_is_noticed_and_put_back(hands: Hands) -> None:
    scene = hands.scene
    await scene.create(scene.job("a"), scene.job("b", "a"))

    hands.stray("a")

    assert await scene.counts() == {"failed": 1, "deferred": 1}
    assert await scene.requests() == [scene.request("a", RequestKind.STRAY)]
    await scene.tell(QUEUED, "a")
    assert await scene.requests() == []
    assert await scene.adopt() == ["a"]


async def test_canceled_deferred_job_is_not_released(hands: Hands) -> None:
    scene = hands.scene
    await scene.create(scene.job("a"), scene.job("b", "a"))

    hands.cancel("b")
    await scene.tell(FINISHED, "a")

    assert await scene.counts() == {"finished": 1, "canceled": 1}
    await scene.tell(DEFERRED, "b")
    await scene.tell(STARTED, "a")
    await scene.tell(FINISHED, "a")
    assert await scene.counts() == {"finished": 1, "queued": 1}


Act = Callable[[], Awaitable[object]]


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.servers)])
async def wipeable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Scene, Act]]:
    if request.param == "memory":
        memory = MemoryTaskGraph()

        async def wipe() -> None:
            memory.wipe()

        yield Scene(memory), wipe
        return
    with run_private_redis(tmp_path) as server:
        async with (
            RedisTaskGraph(server.url, worker="dispatcher-1", timeout_seconds=10) as graph,
            AsyncRedis.from_url(server.url) as client,
        ):

            async def flush() -> None:
                await client.flushall()
                await client.script_flush()

            yield Scene(graph), flush


async def test_wiped_graph_is_noticed_and_built_anew_from_what_the_ledger_has(wipeable: tuple[Scene, Act]) -> None:
    scene, wipe = wipeable
    await scene.create(scene.job("a"), scene.job("b", "a"), scene.job("c", "b"))
    await scene.tell(FINISHED, "a")
    await scene.graph.remember(scene.shard)

    await wipe()

    assert not await scene.graph.known([scene.shard])
    assert await scene.counts() == {}
    assert await scene.adopt() == []
    await scene.tell(FINISHED, "b")

    ledger = [scene.job("a", state=FINISHED), scene.job("b", "a", state=STARTED), scene.job("c", "b")]
    assert await scene.mend(*ledger) == ledger
    await scene.graph.remember(scene.shard)

    assert await scene.graph.known([scene.shard])
    assert await scene.counts() == {"finished": 1, "started": 1, "deferred": 1}
    await scene.tell(FINISHED, "b")
    assert await scene.adopt() == ["c"]


@pytest.fixture(params=["memory", pytest.param("killed", marks=pytest.mark.servers)])
async def silent(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Scene, Act]]:
    """A graph that does not answer, and what makes it answer again."""
    if request.param == "memory":
        memory = MemoryTaskGraph()
        memory.failing = True

        async def answer() -> None:
            memory.failing = False

        yield Scene(memory), answer
        return
    with run_private_redis(tmp_path) as server:
        server.kill()
        async with RedisTaskGraph(server.url, worker="dispatcher-1") as graph:

            async def start() -> None:
                server.start()

            yield Scene(graph), start


async def test_every_call_of_a_silent_graph_fails_as_retryable(silent: tuple[Scene, Act]) -> None:
    scene, answer = silent
    calls: list[Act] = [
        lambda: scene.create(scene.job("a")),
        lambda: scene.tell(FINISHED, "a"),
        scene.adopt,
        lambda: scene.graph.remove(scene.workflow, ["a"]),
        scene.requests,
        lambda: scene.graph.difference([scene.job("a")]),
        lambda: scene.graph.remember(scene.shard),
        lambda: scene.graph.known([scene.shard]),
    ]

    for call in calls:
        with pytest.raises(TaskGraphUnavailable) as raised:
            await call()
        assert raised.value.retryable

    await answer()
    await scene.create(scene.job("a"))
    assert await scene.adopt() == ["a"]
