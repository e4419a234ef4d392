"""The Celery side: the application that its worker loads, and the client that drives it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from celery import Celery
from celery.signals import worker_ready

from benchmarks.programs.driver import RESULT_SECONDS, Load, check
from benchmarks.programs.others import CELERY_SETTINGS, CELERY_THREADS
from coditect.aio.launch import tell_ready

app = Celery("bench", broker=os.environ["CODITECT_AMQP_URL"], backend=os.environ["CODITECT_REDIS_URL"])
app.conf.update(**CELERY_SETTINGS)


@app.task(name="bench.echo")  # type: ignore[untyped-decorator]
def echo(number: int, text: str) -> dict[str, object]:
    """Return the input unchanged: the no-op task of Celery's side."""
    return {"number": number, "text": text}


@worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(**_: object) -> None:
    tell_ready()


class CeleryDriver:
    """The driver of Celery, whose calls block and so run in threads."""

    def __init__(self, load: Load) -> None:
        self._text = load.text
        self._threads = ThreadPoolExecutor(CELERY_THREADS)

    def _submit(self, numbers: range) -> list[Any]:
        return [echo.delay(number, self._text) for number in numbers]

    async def burst(self, tasks: int) -> None:
        """Publish tasks as `Driver.burst`; Celery blocks the event loop, on which nothing else runs."""
        share = -(-tasks // CELERY_THREADS)
        shares = [range(first, min(first + share, tasks)) for first in range(0, tasks, share)]
        for numbers, results in zip(shares, self._threads.map(self._submit, shares), strict=True):
            for number, result in zip(numbers, results, strict=True):
                check(number, self._text, result.get(timeout=RESULT_SECONDS))


@asynccontextmanager
async def open_driver(load: Load) -> AsyncIterator[CeleryDriver]:
    """Yield a client of the servers that the environment names."""
    yield CeleryDriver(load)
