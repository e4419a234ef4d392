"""The twin and Redis do the same, whatever is done to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chaos.simulated_task_graph import MemoryTaskGraph
from dispatcher.taskgraph.port import BATCH, Job, JobState, TaskGraph
from dispatcher.taskgraph.redis import RedisTaskGraph
from tests.contract.graph.scene import Scene
from tests.integration.registry.private_redis import PrivateRedis

pytestmark = pytest.mark.servers

NODES = ("a", "b", "c", "d", "e")
EDGES = {"b": ("a",), "c": ("a",), "d": ("b", "c"), "e": ("a", "d")}
"""In the order of NODES, each after some of those before it."""

CAPABILITIES = ("code.review", "tests.run")

states = st.sampled_from(JobState)
nodes = st.sampled_from(NODES)
steps = st.one_of(
    st.tuples(st.just("create"), st.lists(st.tuples(nodes, states), max_size=5)),
    st.tuples(st.just("tell"), st.lists(st.tuples(nodes, states), max_size=5)),
    st.tuples(st.just("adopt"), st.dictionaries(st.sampled_from(CAPABILITIES), st.sampled_from([0, BATCH]))),
    st.tuples(st.just("remove"), st.lists(nodes, max_size=2)),
    st.tuples(st.just("repair"), st.lists(st.tuples(nodes, states), max_size=3, unique_by=lambda pair: pair[0])),
)


def job(scene: Scene, node: str, state: JobState) -> Job:
    return scene.job(node, *EDGES.get(node, ()), state=state, capability=CAPABILITIES[NODES.index(node) % 2])


async def do(scene: Scene, step: tuple[str, Any]) -> object:
    """One step; what it answers, in no order where the order is the set's."""
    verb, given_ = step
    graph = scene.graph
    match verb:
        case "create":
            await graph.create([job(scene, node, state) for node, state in given_])
            return None
        case "tell":
            await graph.tell([scene.change(node, state) for node, state in given_])
            return None
        case "adopt":
            return sorted(await graph.adopt([scene.shard], given_))
        case "remove":
            await graph.remove(scene.workflow, given_)
            return None
        case _:
            return [wrong.node for wrong in await scene.mend(*[job(scene, node, state) for node, state in given_])]


async def seen(scene: Scene) -> object:
    everywhere = [job(scene, node, state) for node in NODES for state in JobState]
    wrong = {(job.node, job.state) for job in await scene.graph.difference(everywhere)}
    unfinished = {*(await scene.graph.unfinished(scene.shard)).workflows}
    return await scene.counts(), wrong, len(await scene.requests()), unfinished


async def compare(url: str, taken: list[tuple[str, Any]]) -> None:
    memory: TaskGraph = MemoryTaskGraph()
    async with RedisTaskGraph(url, worker="dispatcher-1", timeout_seconds=10) as redis:
        twin, real = Scene(memory), Scene(redis)
        twin.workflow, twin.shard = real.workflow, real.shard
        for step in taken:
            assert await do(twin, step) == await do(real, step), step
            assert await seen(twin) == await seen(real), step


@settings(max_examples=60)
@given(taken=st.lists(steps, max_size=12))
@example(
    taken=[
        ("create", [("a", JobState.DEFERRED), ("d", JobState.FINISHED), ("e", JobState.DEFERRED)]),
        ("tell", [("a", JobState.DEFERRED), ("e", JobState.DEFERRED), ("a", JobState.FINISHED)]),  # one job twice
    ]
)
def test_twin_and_redis_agree_after_every_step(redis_of_module: PrivateRedis, taken: list[tuple[str, Any]]) -> None:
    asyncio.run(compare(redis_of_module.url, taken))
