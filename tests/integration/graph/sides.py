"""The same steps by stock RQ and by us, each on a queue and a workflow of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol
from uuid import uuid4

from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job as StockJob
from rq.serializers import JSONSerializer

from coditect.wire.json import dumps
from dispatcher.taskgraph.function import FUNCTION
from dispatcher.taskgraph.keys import job_id
from dispatcher.taskgraph.port import JobState
from tests.contract.graph.scene import Scene
from tests.integration.graph.picture import Picture, picture
from tests.integration.graph.stock import Stock

TIMEOUT_SECONDS = 60
Graph = dict[str, tuple[str, ...]]
"""The predecessors of each node, in order."""


class Side(Protocol):
    """One of the two."""

    async def create(self, graph: Graph) -> None: ...
    async def start(self, node: str) -> None: ...
    async def finish(self, node: str, value: object) -> None: ...
    async def fail(self, node: str, error: str) -> None: ...
    async def cancel(self, node: str) -> None: ...
    def picture(self, graph: Graph) -> Picture: ...


class OurSide:
    def __init__(self, client: Redis, scene: Scene, queue: str) -> None:
        self.client = client
        self.scene = scene
        self.queue = queue

    async def create(self, graph: Graph) -> None:
        jobs = [self.scene.job(node, *after) for node, after in graph.items()]
        await self.scene.create(*[replace(job, timeout_ms=TIMEOUT_SECONDS * 1000) for job in jobs])

    async def start(self, node: str) -> None:
        _put_first(self.client, self.queue, job_id(self.scene.workflow, node))
        assert await self.scene.adopt(1) == [node]

    async def finish(self, node: str, value: object) -> None:
        change = self.scene.change(node, JobState.FINISHED)
        await self.scene.graph.tell([replace(change, result=dumps(value))])

    async def fail(self, node: str, error: str) -> None:
        await self.scene.graph.tell([replace(self.scene.change(node, JobState.FAILED), error=error)])

    async def cancel(self, node: str) -> None:
        await self.scene.tell(JobState.CANCELED, node)

    def picture(self, graph: Graph) -> Picture:
        return picture(self.client, self.queue, {node: job_id(self.scene.workflow, node) for node in graph})


class StockSide:
    """Done by the calls that RQ's own worker makes; the function itself is not called."""

    def __init__(self, client: Redis, scene: Scene) -> None:
        self.client = client
        self.workflow = str(uuid4())
        self.stock = Stock(client, scene, queue=f"stock-{self.workflow}")
        self.worker = self.stock.worker()
        self.running: dict[str, tuple[StockJob, Execution]] = {}

    def id(self, node: str) -> str:
        return job_id(self.workflow, node)

    async def create(self, graph: Graph) -> None:
        for node, after in graph.items():
            self.stock.queue.enqueue(
                FUNCTION,
                self.workflow,
                node,
                job_id=self.id(node),
                description=f"{node}: code.review",
                job_timeout=TIMEOUT_SECONDS,
                result_ttl=-1,
                failure_ttl=-1,
                depends_on=[self.id(parent) for parent in after] or None,
            )

    async def start(self, node: str) -> None:
        _put_first(self.client, self.stock.name, self.id(node))
        taken = Queue.dequeue_any([self.stock.queue], None, connection=self.client, serializer=JSONSerializer)
        assert taken is not None
        job, _ = taken
        assert job.id == self.id(node)
        execution = self.worker.prepare_execution(job)
        self.worker.prepare_job_execution(job, remove_from_intermediate_queue=True)
        self.running[node] = (job, execution)

    async def finish(self, node: str, value: object) -> None:
        job, self.worker.execution = self.running.pop(node)
        self.worker.handle_execution_ended(job, self.stock.queue, 60)
        job._result = value
        self.worker.handle_job_success(job, self.stock.queue, self.stock.queue.started_job_registry)

    async def fail(self, node: str, error: str) -> None:
        job, self.worker.execution = self.running.pop(node)
        self.worker.handle_execution_ended(job, self.stock.queue, 60)
        self.worker.handle_job_failure(job, self.stock.queue, exc_string=error)

    async def cancel(self, node: str) -> None:
        StockJob.fetch(self.id(node), connection=self.client, serializer=JSONSerializer).cancel()

    def picture(self, graph: Graph) -> Picture:
        return picture(self.client, self.stock.name, {node: self.id(node) for node in graph})


def _put_first(client: Redis, queue: str, job: str) -> None:
    """Dependents that are released together come in no order."""
    assert client.lrem(f"rq:queue:{queue}", 1, job) == 1
    client.lpush(f"rq:queue:{queue}", job)
