"""The Taskiq side: the broker that its worker loads, and the client that drives it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from taskiq import TaskiqEvents, TaskiqState
from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisAsyncResultBackend

from benchmarks.programs.driver import RESULT_SECONDS, WINDOW, Load, check
from benchmarks.programs.others import TASKIQ_PREFETCH, TASKIQ_READERS
from coditect.aio.launch import tell_ready

LOOK_SECONDS = 0.05

results: RedisAsyncResultBackend[Any] = RedisAsyncResultBackend(os.environ["CODITECT_REDIS_URL"], result_ex_time=600)
broker = AioPikaBroker(os.environ["CODITECT_AMQP_URL"], qos=TASKIQ_PREFETCH).with_result_backend(results)


@broker.task(task_name="bench.echo")  # type: ignore[untyped-decorator]
async def echo(number: int, text: str) -> dict[str, object]:
    """Return the input unchanged: the no-op task of Taskiq's side."""
    return {"number": number, "text": text}


@broker.on_event(TaskiqEvents.WORKER_STARTUP)  # type: ignore[untyped-decorator]
async def _ready(_: TaskiqState) -> None:
    tell_ready()


class TaskiqDriver:
    """The driver of Taskiq, with a bounded number of tasks under way."""

    def __init__(self, load: Load) -> None:
        self._text = load.text
        self._window = asyncio.Semaphore(WINDOW)

    async def _submit(self, number: int) -> Any:
        try:
            return await echo.kiq(number, self._text)
        finally:
            self._window.release()

    async def _read(self, under_way: asyncio.Queue[tuple[int, asyncio.Task[Any]] | None]) -> None:
        while (submission := await under_way.get()) is not None:
            number, submitted = submission
            result = await (await submitted).wait_result(check_interval=LOOK_SECONDS, timeout=RESULT_SECONDS)
            check(number, self._text, result.return_value)

    async def burst(self, tasks: int) -> None:
        """Publish tasks as `Driver.burst`, and check every result."""
        under_way: asyncio.Queue[tuple[int, asyncio.Task[Any]] | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            for _ in range(TASKIQ_READERS):
                group.create_task(self._read(under_way))
            for number in range(tasks):
                await self._window.acquire()
                under_way.put_nowait((number, group.create_task(self._submit(number))))
            for _ in range(TASKIQ_READERS):
                under_way.put_nowait(None)


@asynccontextmanager
async def open_driver(load: Load) -> AsyncIterator[TaskiqDriver]:
    """Yield a client of the servers that the environment names."""
    await broker.startup()
    try:
        yield TaskiqDriver(load)
    finally:
        await broker.shutdown()
