"""A process that holds many locks at once, and writes under all of them when it is told to, in time or not.

It prints `holding` and then reads a line; the writes are lines of a resource's name and a fence.
"""

from __future__ import annotations

import asyncio
import sys

from coditect import Client
from coditect.errors import LockLost
from coditect.settings.settings import read_settings

TTL = "1s"


async def hold(client: Client, resource: str, holding: asyncio.Semaphore, write: asyncio.Event) -> None:
    """Hold one lock until it is time to write."""
    fence = 0
    try:
        async with client.lock(resource, ttl=TTL) as lock:
            fence = lock.fence
            holding.release()
            await write.wait()
    except LockLost:
        pass  # it writes all the same, as what was under way when the process was paused
    await write.wait()
    sys.stdout.write(f"{resource} {fence}\n")


async def main(count: int) -> None:
    """Hold `count` locks, and write under each of them once a line was read."""
    holding, write = asyncio.Semaphore(0), asyncio.Event()
    async with Client.connecting(read_settings()) as client, asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(hold(client, f"paused:{number}", holding, write))
        for _ in range(count):
            await holding.acquire()
        sys.stdout.write("holding\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.readline)
        write.set()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
