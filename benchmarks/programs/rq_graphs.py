"""Graphs through RQ: a job per node with `depends_on`, as its documentation has it. The worker is `rq_side`'s."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis import Redis
from rq import Queue, Retry
from rq.job import Dependency, Job
from rq.queue import EnqueueData
from rq.serializers import JSONSerializer

from benchmarks.programs.driver import RESULT_SECONDS
from benchmarks.programs.graphs import TEXT, Graph, Node, check_sinks
from benchmarks.programs.others import RQ_BATCH
from benchmarks.programs.rq_side import QUEUE


class RqRunner:
    """The runner of graphs through RQ."""

    def __init__(self, connection: Redis) -> None:
        self._queue = Queue(QUEUE, connection=connection, serializer=JSONSerializer)

    async def run(self, graph: Graph) -> None:
        """Run a graph as `GraphRunner.run`; RQ blocks the event loop, on which nothing else runs."""
        jobs: dict[int, Job] = {}
        for layer in graph.layers():
            for first in range(0, len(layer), RQ_BATCH):
                batch = layer[first : first + RQ_BATCH]
                made = self._queue.enqueue_many([self._prepared(node, jobs) for node in batch])
                jobs |= {_number(job): job for job in made}
        check_sinks(graph, [self._value(jobs[number]) for number in graph.sinks])

    @staticmethod
    def _prepared(node: Node, jobs: dict[int, Job]) -> EnqueueData:
        after: list[Dependency | Job | str] = [jobs[number] for number in node.after]
        return Queue.prepare_data(
            "benchmarks.programs.rq_side.echo", (node.number, TEXT), retry=Retry(max=3), depends_on=after or None
        )

    @staticmethod
    def _value(job: Job) -> object:
        result = job.latest_result(timeout=int(RESULT_SECONDS))
        if result is None:
            raise TimeoutError(f"no result of job {job.id}")
        return result.return_value


def _number(job: Job) -> int:
    number = job.args[0]
    assert isinstance(number, int)
    return number


@asynccontextmanager
async def open_runner() -> AsyncIterator[RqRunner]:
    """Yield a client of the Redis that the environment names; its calls may wait as long as RQ has them wait."""
    with Redis.from_url(os.environ["CODITECT_REDIS_URL"], socket_timeout=None) as connection:
        yield RqRunner(connection)
