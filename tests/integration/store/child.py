"""A process that works on a SQLite store until it is killed, and tells what was acknowledged on its output.

python tests/integration/store/child.py FILE commit      acknowledged transactions, one per line
python tests/integration/store/child.py FILE stop        stops itself inside a transaction
python tests/integration/store/child.py FILE fill BYTES  may write so much, and ends when the store failed
"""

from __future__ import annotations

import asyncio
import math
import os
import resource
import signal
import sys
import threading
from pathlib import Path

from dispatcher.store.errors import StoreFailed
from dispatcher.store.keys import Space
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.transaction import Transaction

PARTS = 3
CALLERS = 32
ROWS = Space(("rows",))


def write(tr: Transaction, name: str) -> None:
    """Three keys and a count: none or all of them."""
    for part in range(PARTS):
        tr.set(ROWS.pack((name, part)), bytes(500))
    tr.add(b"count", 1)


async def commit(database: SqliteDatabase) -> None:
    async def caller(number: int) -> None:
        turn = 0
        while True:
            name = f"{os.getpid()}-{number}-{turn}"
            await database.run(lambda tr: write(tr, name))  # noqa: B023  # awaited at once
            os.write(1, name.encode() + b"\n")
            turn += 1

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))


async def stop(database: SqliteDatabase) -> None:
    def body(tr: Transaction) -> None:
        write(tr, "half")
        os.write(1, b"stopped\n")
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # here, not in a thread that happens to run

    await database.run(body)


async def fill(database: SqliteDatabase, size_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    work = asyncio.create_task(commit(database))
    failed = asyncio.create_task(database.failure())
    await asyncio.wait({work, failed}, return_when=asyncio.ALL_COMPLETED)
    assert isinstance(work.exception(), StoreFailed)
    sys.exit(f"ended: {failed.result()}")


async def main() -> None:
    path, verb, *rest = sys.argv[1:]
    async with SqliteDatabase(Path(path), wait_seconds=math.inf) as database:
        match verb:
            case "commit":
                await commit(database)
            case "stop":
                await stop(database)
            case "fill":
                await fill(database, int(rest[0]))


if __name__ == "__main__":
    asyncio.run(main())
