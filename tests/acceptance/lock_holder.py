"""A holder of a lock as a process: it writes to a fenced folder when it is told to, whatever has become of its lock."""

from __future__ import annotations

import asyncio
import sys

from coditect import Client
from coditect.errors import LockLost
from examples.fenced import FencedFolder, StaleFence


def write_when_told(folder: str, text: str, fence: int) -> str:
    """In a thread, which no cancellation stops: as a write that is on its way when the process is paused."""
    sys.stdin.readline()
    try:
        FencedFolder(folder).write("shared.txt", text, fence)
    except StaleFence:
        return "refused"
    return "written"


async def main(folder: str, text: str) -> None:
    async with Client.from_env() as client:
        writing: asyncio.Task[str] | None = None
        try:
            async with client.lock("folder:shared", ttl="1s") as lock:
                print(f"holds {lock.fence}", flush=True)
                writing = asyncio.create_task(asyncio.to_thread(write_when_told, folder, text, lock.fence))
                await asyncio.shield(writing)
        except LockLost:
            print("lost", flush=True)
        assert writing is not None
        print(await writing, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
