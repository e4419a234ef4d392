"""The RQ side: the client that drives it, and its worker, run as `python -m benchmarks.programs.rq_side`."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis import Redis
from rq import Queue, Retry, SimpleWorker
from rq.serializers import JSONSerializer

from benchmarks.programs.driver import RESULT_SECONDS, Load, check
from benchmarks.programs.others import RQ_BATCH
from coditect.aio.launch import tell_ready

QUEUE = "bench"


def echo(number: int, text: str) -> dict[str, object]:
    """Return the input unchanged: the no-op task of RQ's side."""
    return {"number": number, "text": text}


class RqDriver:
    """The driver of RQ, whose jobs go through one queue."""

    def __init__(self, connection: Redis, load: Load) -> None:
        self._text = load.text
        self._queue = Queue(QUEUE, connection=connection, serializer=JSONSerializer)

    async def burst(self, tasks: int) -> None:
        """Enqueue tasks as `Driver.burst`; RQ blocks the event loop, on which nothing else runs."""
        jobs = []
        for first in range(0, tasks, RQ_BATCH):
            numbers = range(first, min(first + RQ_BATCH, tasks))
            jobs += self._queue.enqueue_many(
                [
                    Queue.prepare_data("benchmarks.programs.rq_side.echo", (number, self._text), retry=Retry(max=3))
                    for number in numbers
                ]
            )
        for number, job in enumerate(jobs):
            result = job.latest_result(timeout=int(RESULT_SECONDS))
            if result is None:
                raise TimeoutError(f"no result of job {number}")
            check(number, self._text, result.return_value)


@asynccontextmanager
async def open_driver(load: Load) -> AsyncIterator[RqDriver]:
    """Yield a client of the Redis that the environment names."""
    with Redis.from_url(os.environ["CODITECT_REDIS_URL"]) as connection:
        yield RqDriver(connection, load)


def main() -> None:
    """Run RQ's worker until SIGTERM."""
    with Redis.from_url(os.environ["CODITECT_REDIS_URL"]) as connection:
        worker = SimpleWorker(
            [Queue(QUEUE, connection=connection, serializer=JSONSerializer)],
            connection=connection,
            serializer=JSONSerializer,
        )
        tell_ready()
        worker.work(logging_level="ERROR")


if __name__ == "__main__":
    main()
