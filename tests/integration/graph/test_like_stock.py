"""What we write is what stock RQ 2.12 writes, key by key and field by field.

The differences are few, and each is said here:

* `coditect_state` in a job's hash is ours; stock tools read over it
* a job's `data` is not compressed; stock reads both
* `+inf` as the score of a started job, whose keys have no TTL: it needs no heartbeat
* the execution of a job that is canceled while it runs ends with it; stock leaves it to its TTL
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol
from uuid import uuid4

import pytest
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import Job as StockJob
from rq.serializers import JSONSerializer

from coditect.wire.json import dumps
from dispatcher.taskgraph.function import FUNCTION
from dispatcher.taskgraph.port import JobState
from dispatcher.taskgraph.records import job_id
from tests.contract.graph.scene import Scene
from tests.integration.graph.stock import Stock

REGISTRIES = ("deferred", "scheduled", "finished", "failed", "canceled", "wip")
MOMENTS = {"created_at", "enqueued_at", "started_at", "ended_at", "last_heartbeat"}


Picture = dict[str, Any]


def picture(client: Any, queue: str, ids: Mapping[str, str]) -> Picture:
    """By key, with the node in place of its job's id; `ids` are the jobs' ids by node, `client` a `redis.Redis`."""
    names = {job: node for node, job in ids.items()}
    found: Picture = {"queue": sorted(_named(client.lrange(f"rq:queue:{queue}", 0, -1), names))}
    for registry in REGISTRIES:
        members = client.zrange(f"rq:{registry}:{queue}", 0, -1, withscores=True)
        found[registry] = {names[member.decode().split(":")[0]]: _score(score) for member, score in members}
    for node, job in ids.items():
        found[f"{node} job"] = _job(client.hgetall(f"rq:job:{job}"), names, queue)
        for key, written in (
            ("dependencies", f"rq:job::{job}:dependencies"),
            ("dependents", f"rq:job:{job}:dependents"),
        ):
            found[f"{node} {key}"] = sorted(_named(client.smembers(written), names))
        executions = [one.decode() for one in client.zrange(f"rq:executions:{job}", 0, -1)]
        found[f"{node} executions"] = [
            _execution(client.hgetall(f"rq:execution:{job}:{one}"), one) for one in executions
        ]
        found[f"{node} results"] = [_result(entry) for _, entry in client.xrange(f"rq:results:{job}")]
        found[f"{node} lives"] = [client.ttl(f"rq:{kind}:{job}") < 0 for kind in ("job", "results")]
    return found


def _named(members: Sequence[bytes], names: Mapping[str, str]) -> list[str]:
    return [names[member.decode()] for member in members]


def _score(score: float) -> str:
    """A moment is left out: +inf and RQ's -1 mean something."""
    return "moment" if 0 < score < float("inf") else str(score)


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in fields.items()}


def _job(hash_: Mapping[bytes, bytes], names: Mapping[str, str], queue: str) -> dict[str, Any]:
    fields: dict[str, Any] = _text(hash_)
    for name in MOMENTS & fields.keys():
        fields[name] = fields[name] and "moment"
    fields["worker_name"] = fields["worker_name"] and "worker"
    fields["origin"] = fields["origin"] == queue
    written = hash_[b"data"]
    data = json.loads(zlib.decompress(written) if written[:1] == b"x" else written)
    fields["data"] = [data[0], data[1], [names[f"{data[2][0]}_{data[2][1]}"]], data[3]]
    if "dependency_ids" in fields:
        fields["dependency_id"] = names[fields["dependency_id"]]
        fields["dependency_ids"] = [names[job] for job in json.loads(fields["dependency_ids"])]
    return fields


def _execution(hash_: Mapping[bytes, bytes], execution: str) -> dict[str, Any]:
    fields = _text(hash_)
    right = fields.pop("id") == execution and len(execution) == 32 and fields.pop("worker_name") != ""
    return {"right": right} | {name: float(value) > 0 for name, value in fields.items()}


def _result(entry: Mapping[bytes, bytes]) -> dict[str, Any]:
    fields: dict[str, Any] = _text(entry)
    fields["worker_name"] = "worker"
    fields["execution_id"] = len(fields["execution_id"])
    for name in ("execution_started_at", "execution_ended_at"):
        fields[name] = float(fields[name]) > 0
    if "return_value" in fields:
        fields["return_value"] = json.loads(b64decode(fields["return_value"]))
    if "exc_string" in fields:
        fields["exc_string"] = zlib.decompress(b64decode(fields["exc_string"])).decode()
    return fields


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


pytestmark = pytest.mark.servers


DIAMOND: Graph = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}


FINISH = [("start", "a"), ("finish", "a", {"lines": 42})]
FINISH_SOME = [*FINISH, ("start", "b"), ("finish", "b", "ok")]
STEPS: dict[str, list[tuple[Any, ...]]] = {
    "nothing": [],
    "start": FINISH[:1],
    "finish": FINISH,
    "finish with nothing": [("start", "a"), ("finish", "a", None)],
    "finish some": FINISH_SOME,
    "finish all": [*FINISH_SOME, ("start", "c"), ("finish", "c", [1, 2]), ("start", "d"), ("finish", "d", True)],
    "fail": [*FINISH, ("start", "b"), ("fail", "b", "Traceback: the review failed")],
    "cancel queued": [*FINISH, ("cancel", "c")],
    "cancel deferred": [("cancel", "d"), *FINISH],
    "cancel started": [("start", "a"), ("cancel", "a")],
}
"""What is done to the jobs after they are created, by the methods of `Side`."""


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
async def test_keys_are_those_of_stock(steps: list[tuple[Any, ...]], client: Redis, scene: Scene, stock: Stock) -> None:
    ours, theirs = OurSide(client, scene, stock.name), StockSide(client, scene)
    for side in (ours, theirs):
        await side.create(DIAMOND)
        for verb, *arguments in steps:
            await getattr(side, verb)(*arguments)

    written, expected = ours.picture(DIAMOND), theirs.picture(DIAMOND)
    assert _without_ours(written) == _as_ours(expected)
    assert bool(client.sismember("rq:queues", f"rq:queue:{stock.name}"))


def _without_ours(written: Picture) -> Picture:
    for node in DIAMOND:
        job = written[f"{node} job"]
        assert job.pop("coditect_state") == job["status"]
    return written


def _as_ours(expected: Picture) -> Picture:
    expected["wip"] = dict.fromkeys(expected["wip"], "inf")
    for node in expected["canceled"]:
        expected[f"{node} executions"] = []
    return expected
