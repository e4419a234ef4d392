"""`python -m benchmarks.programs.aio_pika_agent`: the hand-written side's agent, consumer and replier at once.

Its task queue has the same arguments as ours. A delivery is acked after its reply was confirmed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal

from aio_pika import DeliveryMode, Message, connect_robust
from aio_pika.abc import AbstractExchange, AbstractIncomingMessage

from benchmarks.programs.aio_pika_driver import TASK_QUEUE
from benchmarks.programs.driver import PREFETCH
from benchmarks.programs.tally import own_tally
from coditect.aio.launch import tell_ready
from coditect.aio.loop import run_loop
from coditect.wire.json import dumps, loads

DEAD_EXCHANGE = "baseline.dead"
TASK_QUEUE_ARGUMENTS = {
    "x-queue-type": "quorum",
    "x-delivery-limit": 1_000,
    "x-dead-letter-exchange": DEAD_EXCHANGE,
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


class Replier:
    """A consumer that answers each task with the task's own input, and counts tasks that want no answer."""

    def __init__(self, exchange: AbstractExchange) -> None:
        self._exchange = exchange

    async def take(self, message: AbstractIncomingMessage) -> None:
        """Publish the reply, wait for its confirm, then ack the task."""
        task = loads(message.body)
        if message.reply_to is None:
            own_tally().add()
            await message.ack()
            return
        reply = Message(
            dumps(task),
            content_type="application/json",
            delivery_mode=DeliveryMode.PERSISTENT,
            correlation_id=message.correlation_id,
        )
        await self._exchange.publish(reply, routing_key=message.reply_to, mandatory=True)
        await message.ack()


async def serve(url: str) -> None:
    """Consume and answer tasks at the broker's address until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await connect_robust(url) as connection:
        publishing = await connection.channel(publisher_confirms=True, on_return_raises=True)
        consuming = await connection.channel(publisher_confirms=False)
        await consuming.set_qos(prefetch_count=PREFETCH)
        await consuming.declare_exchange(DEAD_EXCHANGE, "topic", durable=True)
        queue = await consuming.declare_queue(TASK_QUEUE, durable=True, arguments=TASK_QUEUE_ARGUMENTS)
        await queue.consume(Replier(publishing.default_exchange).take)
        gc.freeze()  # as our agent does
        tell_ready()
        await stop.wait()


if __name__ == "__main__":
    run_loop(serve(os.environ["CODITECT_AMQP_URL"]))
