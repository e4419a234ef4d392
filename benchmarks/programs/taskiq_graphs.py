"""Graphs through Taskiq's pipelines: the broker that its worker loads, and the client that drives it.

A pipeline is a chain of steps; a step is one task, or one task for each element of the last result. A layer of several
nodes comes after the whole one before it, and a task of the library waits for the layer.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

from taskiq import TaskiqEvents, TaskiqState, async_shared_broker
from taskiq_aio_pika import AioPikaBroker
from taskiq_pipelines import Pipeline, PipelineMiddleware
from taskiq_redis import RedisAsyncResultBackend

from benchmarks.programs.driver import RESULT_SECONDS
from benchmarks.programs.graphs import TEXT, Graph, check_sinks
from benchmarks.programs.others import TASKIQ_PREFETCH
from coditect.aio.launch import tell_ready

LOOK_SECONDS = 0.001
"""The pause between looks for a result; a single graph is under way at a time."""
LAYER_LOOK_SECONDS = 0.02
"""The same pause for the task that waits for a layer: it asks for each of its nodes every time."""

results: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(os.environ["CODITECT_REDIS_URL"], result_ex_time=600)
broker = (
    AioPikaBroker(os.environ["CODITECT_AMQP_URL"], qos=TASKIQ_PREFETCH)
    .with_result_backend(results)
    .with_middlewares(PipelineMiddleware())
)
async_shared_broker.default_broker(broker)


@broker.task(task_name="bench.node")  # type: ignore[untyped-decorator]
async def echo(number: int, text: str) -> dict[str, object]:
    """Return the input unchanged: the no-op node of Taskiq's side."""
    return {"number": number, "text": text}


@broker.task(task_name="bench.spread")  # type: ignore[untyped-decorator]
async def spread(first: int, width: int, text: str) -> list[dict[str, object]]:
    """Return a result for each node of the next layer, which passes one to each node."""
    return [{"number": first + place, "text": text} for place in range(width)]


@broker.task(task_name="bench.next")  # type: ignore[untyped-decorator]
async def echo_next(before: dict[str, Any], step: int, text: str) -> dict[str, object]:
    """Return the text with the number of the node before increased by `step`: the no-op node behind another."""
    return {"number": before["number"] + step, "text": text}


@broker.on_event(TaskiqEvents.WORKER_STARTUP)  # type: ignore[untyped-decorator]
async def _ready(_: TaskiqState) -> None:
    tell_ready()


Step = tuple[Any, dict[str, object]]


def single_step(first: int, width: int, following: int) -> Step:
    """Return the task and arguments of a layer of one node; before a layer of several nodes it gives each its part."""
    if following > 1:
        return spread, {"first": first + width - following, "width": following, "text": TEXT}
    return echo, {"number": first, "text": TEXT}


def pipeline_of(graph: Graph) -> tuple[Pipeline[Any, Any], dict[str, object]]:
    """Return the graph as a pipeline, and the arguments of the first step, which are given at its start.

    A pipeline begins with a single task, so a first layer of several nodes has an extra one before it.
    """
    made: Pipeline[Any, Any] = Pipeline(broker)
    extra = graph.widths[0] > 1
    widths, first = ([1, *graph.widths], -1) if extra else ([*graph.widths], 0)
    begin, arguments = single_step(first, 1, [*widths, 1][1])
    made.call_after(begin)
    first += 1
    for width, following in pairwise([*widths[1:], 1]):
        if width > 1:
            made.map(echo_next, check_interval=LAYER_LOOK_SECONDS, step=width, text=TEXT)
        else:
            task, arguments = single_step(first, width, following)
            made.call_after(task, **arguments)
        first += width
    return made, arguments


class TaskiqRunner:
    """The runner of graphs through Taskiq."""

    async def run(self, graph: Graph) -> None:
        """Run a graph as a pipeline, as `GraphRunner.run`."""
        pipeline, arguments = pipeline_of(graph)
        task = await pipeline.kiq(**arguments)
        result = await task.wait_result(check_interval=LOOK_SECONDS, timeout=RESULT_SECONDS)
        result.raise_for_error()
        value = result.return_value
        check_sinks(graph, value if graph.widths[-1] > 1 else [value])


@asynccontextmanager
async def open_runner() -> AsyncIterator[TaskiqRunner]:
    """Yield a client of the servers that the environment names."""
    await broker.startup()
    try:
        yield TaskiqRunner()
    finally:
        await broker.shutdown()
