"""The hand-written side's client: aio-pika as its documentation teaches it, written to be fast.

The client uses confirms, mandatory and persistent messages, and a durable classic reply queue, and acks each reply;
publishes are pipelined behind a semaphore. One channel publishes, another consumes. JSON is the same library's as ours.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from aio_pika import DeliveryMode, Message, connect_robust
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from benchmarks.programs.driver import REPLY_PREFETCH, RESULT_SECONDS, WINDOW, Load, check
from coditect.wire.json import dumps, loads

TASK_QUEUE = "baseline.tasks"


class AioPikaDriver:
    """The driver of the hand-written aio-pika client."""

    def __init__(self, exchange: AbstractExchange, reply_to: str, text: str) -> None:
        self._exchange = exchange
        self._text = text
        self._reply_to = reply_to
        self._window = asyncio.Semaphore(WINDOW)
        self._waiting: dict[str, asyncio.Future[Any]] = {}

    async def replied(self, message: AbstractIncomingMessage) -> None:
        """Take a reply; the first reply of a task counts."""
        waiting = self._waiting.pop(message.correlation_id or "", None)
        if waiting is not None:
            waiting.set_result(loads(message.body))
        await message.ack()

    async def _publish(self, number: int, *, task_id: str, reply_to: str | None = None) -> None:
        message = Message(
            dumps({"number": number, "text": self._text}),
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
            message_id=task_id,
            correlation_id=task_id,
            reply_to=reply_to,
        )
        await self._exchange.publish(message, routing_key=TASK_QUEUE, mandatory=True)

    async def _ask(self, number: int) -> asyncio.Future[Any]:
        task_id = str(uuid4())
        reply = self._waiting[task_id] = asyncio.get_running_loop().create_future()
        await self._publish(number, task_id=task_id, reply_to=self._reply_to)
        return reply

    async def _ask_in_turn(self, number: int) -> asyncio.Future[Any]:
        try:
            return await self._ask(number)
        finally:
            self._window.release()

    async def _tell_in_turn(self, number: int) -> None:
        try:
            await self._publish(number, task_id=str(uuid4()))
        finally:
            self._window.release()

    async def burst(self, tasks: int) -> None:
        """Publish tasks in parallel, as `Driver.burst`, and check every reply."""
        async with asyncio.timeout(RESULT_SECONDS), asyncio.TaskGroup() as group:
            publishing = []
            for number in range(tasks):
                await self._window.acquire()
                publishing.append(group.create_task(self._ask_in_turn(number)))
            replies = await asyncio.gather(*publishing)
            for number, value in enumerate(await asyncio.gather(*replies)):
                check(number, self._text, value)

    async def single(self, number: int) -> None:
        """Submit a task and check its reply, as `Driver.single`."""
        async with asyncio.timeout(RESULT_SECONDS):
            check(number, self._text, await (await self._ask(number)))

    async def forget(self, tasks: int) -> None:
        """Publish tasks that want no reply, as `Driver.forget`."""
        async with asyncio.TaskGroup() as group:
            for number in range(tasks):
                await self._window.acquire()
                group.create_task(self._tell_in_turn(number))


@asynccontextmanager
async def open_driver(load: Load) -> AsyncIterator[AioPikaDriver]:
    """Yield a client of the broker that the environment names; the agent has declared the task queue."""
    async with await connect_robust(os.environ["CODITECT_AMQP_URL"]) as connection:
        publishing = await connection.channel(publisher_confirms=True, on_return_raises=True)
        consuming = await connection.channel(publisher_confirms=False)
        await consuming.set_qos(prefetch_count=REPLY_PREFETCH)
        replies = await consuming.declare_queue(
            f"baseline.reply.{uuid4().hex}",
            durable=True,
            arguments={"x-queue-type": "classic", "x-expires": 600_000},
        )
        driver = AioPikaDriver(publishing.default_exchange, replies.name, load.text)
        await replies.consume(driver.replied)
        yield driver
        await replies.delete(if_unused=False, if_empty=False)
