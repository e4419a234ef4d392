"""A graph of stock RQ's jobs, by the calls that RQ's worker makes; no function is executed."""

from __future__ import annotations

import warnings
from uuid import uuid4

from redis import Redis
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer


class StockGraph:
    """A queue, its worker, and the jobs that the worker has taken."""

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(url)
        self._name = str(uuid4())
        self._queue = Queue(f"stock-{self._name}", connection=self._client, serializer=JSONSerializer)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._worker = SimpleWorker([self._queue], connection=self._client, serializer=JSONSerializer)
        self._taken: dict[str, tuple[Job, Execution]] = {}

    async def create(self, edges: dict[str, tuple[str, ...]]) -> None:
        jobs = [
            Queue.prepare_data(
                "os.getpid",
                job_id=self._id(node),
                timeout=60,
                result_ttl=-1,
                failure_ttl=-1,
                depends_on=[self._id(parent) for parent in after] or None,
            )
            for node, after in edges.items()
        ]
        self._queue.enqueue_many(jobs)

    async def adopt(self) -> list[str]:
        """Take all queued jobs, one after the other, and return their ids."""
        taken: list[str] = []
        while True:
            found = Queue.dequeue_any([self._queue], None, connection=self._client, serializer=JSONSerializer)
            if found is None:
                return taken
            job, _ = found
            execution = self._worker.prepare_execution(job)
            self._worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
            self._taken[job.id] = (job, execution)
            taken.append(job.id)

    async def finish(self, jobs: list[str]) -> None:
        for id_ in jobs:
            job, self._worker.execution = self._taken.pop(id_)
            self._worker.handle_execution_ended(job, self._queue, 60)
            job._result = 1
            self._worker.handle_job_success(job, self._queue, self._queue.started_job_registry)

    def _id(self, node: str) -> str:
        return f"{self._name}_{node}"
