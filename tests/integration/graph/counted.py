"""What stock RQ counts of everything that a plane has."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

from redis import Redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from coditect.client.workflow_run import Run
from dispatcher.taskgraph.keys import job_id
from tests.integration.graph.plane import QUEUES
from tests.integration.graph.stock import counts, info
from tests.support import eventually

COUNTED = {"queued": "queued", "executing": "started", "finished": "finished", "failed": "failed"}
"""The words of `rq info`, and RQ's states."""


class Rq:
    """What stock RQ says about all of our queues."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self.queues = [Queue(name, connection=client, serializer=JSONSerializer) for name in QUEUES]

    def states(self) -> Counter[str]:
        """What rq-dashboard counts, without the zeros."""
        return sum((counts(queue) for queue in self.queues), Counter[str]())

    def counts(self) -> dict[str, int]:
        """What `rq info` counts, by RQ's classes: quickly."""
        states = self.states()
        return {word: states[state] for word, state in COUNTED.items()}

    def job(self, run: Run, node: str) -> Job:
        return Job.fetch(job_id(run.id, node), connection=self.client, serializer=JSONSerializer)

    def status(self, run: Run, node: str) -> str:
        """Empty when there is no such job."""
        there = Job.exists(job_id(run.id, node), connection=self.client)
        return str(self.job(run, node).get_status().value) if there else ""

    def release(self, run: Run, parent: str, child: str) -> None:
        """Stock RQ queues the child of a job that has finished: a parent that is gone counts as finished."""
        job, dependent = self.job(run, parent), self.job(run, child)
        queue = Queue(job.origin, connection=self.client, serializer=JSONSerializer)
        self.client.sadd(job.dependents_key, dependent.id)  # as if ours had not looked yet
        queue.enqueue_dependents(job)
        assert self.status(run, child) == "queued"

    async def info(self) -> dict[str, int]:
        """By `rq info`, a process of its own."""
        rows = (await asyncio.to_thread(info, self.client, *QUEUES)).values()
        return {word: sum(row[word] for row in rows) for word in self.counts()}

    async def agrees(self, expected: Callable[[], Awaitable[dict[str, int]]]) -> None:
        """Returns when both say so."""

        async def stands() -> bool:
            return self.counts() == await expected() == await self.info()

        await eventually(stands)
