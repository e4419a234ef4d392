"""RQ 2.12 itself, used as its documentation says: what our jobs are compared with, and what is done to them."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

from redis import Redis
from rq import Queue, SimpleWorker
from rq.job import Job
from rq.serializers import JSONSerializer

from coditect.model.capability import Priority
from dispatcher.taskgraph.records import job_id, queue_name
from tests.contract.graph.scene import Scene


class Stock:
    """A queue, its jobs and a worker of stock RQ."""

    def __init__(self, client: Redis, scene: Scene, *, queue: str | None = None) -> None:
        self.client = client
        self.scene = scene
        self.name = queue or queue_name(Priority.P1, scene.shard)
        self.queue = Queue(self.name, connection=client, serializer=JSONSerializer)

    def id(self, node: str) -> str:
        return job_id(self.scene.workflow, node)

    def fetch(self, node: str) -> Job:
        return Job.fetch(self.id(node), connection=self.client, serializer=JSONSerializer)

    def worker(self, *, serializer: Any = JSONSerializer) -> SimpleWorker:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return SimpleWorker([self.queue], connection=self.client, serializer=serializer)

    def work(self, *, serializer: Any = JSONSerializer) -> None:
        """A stock worker takes all that is queued."""
        self.worker(serializer=serializer).work(burst=True, logging_level="ERROR")

    def counts(self) -> Counter[str]:
        """What RQ's classes count, without the zeros."""
        return counts(self.queue)

    def info(self) -> dict[str, dict[str, int]]:
        """What `rq info` prints about the queue."""
        return info(self.client, self.name)

    def rq(self, *arguments: str) -> str:
        """The output of RQ's command line."""
        return rq(self.client, *arguments)


def counts(queue: Queue) -> Counter[str]:
    """What RQ's classes, and so rq-dashboard, count of the queue, without the zeros."""
    return +Counter(
        queued=queue.count,
        started=queue.started_job_registry.count,
        deferred=queue.deferred_job_registry.count,
        scheduled=queue.scheduled_job_registry.count,
        finished=queue.finished_job_registry.count,
        failed=queue.failed_job_registry.count,
        canceled=queue.canceled_job_registry.count,
    )


def info(client: Redis, *queues: str) -> dict[str, dict[str, int]]:
    """What `rq info` prints about the queues."""
    lines = rq(client, "info", "--raw", "--only-queues", *queues).splitlines()
    return dict(map(_read, (line for line in lines if line.startswith("queue "))))


def rq(client: Redis, *arguments: str) -> str:
    """The output of RQ's command line, on the client's server."""
    connection = client.connection_pool.connection_kwargs
    url = f"redis://{connection['host']}:{connection['port']}/0"
    command = [sys.executable, "-m", "rq.cli", arguments[0], "--url", url, *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=_ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


_ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RQ_")}


def _read(line: str) -> tuple[str, dict[str, int]]:
    """`queue NAME 3, 1 executing, 0 finished, 0 failed` as numbers."""
    first, *others = line.removeprefix("queue ").split(", ")
    name, queued = first.rsplit(" ", 1)
    return name, {"queued": int(queued)} | {word: int(number) for number, word in map(_pair, others)}


def _pair(text: str) -> Sequence[str]:
    return text.split(" ", 1)
