"""Work queue: many tasks, several processes, and each task goes to a process with a free slot."""

import asyncio

from coditect import Client, Priority


async def main() -> None:
    async with Client.from_env() as client:
        texts = [f"page {number}" for number in range(200)]
        bulk = [handle async for handle in client.submit_many("text.hash", texts, priority=Priority.P2)]

        urgent = await client.submit("text.hash", "front page", priority=Priority.P0)
        await urgent.result(timeout="20s")
        waiting = sum(not handle.done for handle in bulk)
        print("the urgent one passed", "some" if waiting > 0 else "none", "of the others")

        digests = [await handle.result(timeout="60s") for handle in bulk]
        print(len(digests), "done by", len({digest["pid"] for digest in digests}), "processes")


asyncio.run(main())
