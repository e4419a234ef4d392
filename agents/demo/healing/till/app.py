"""A till (cash register) that answers over HTTP on one event loop: the healing demo's service, with its bugs.

`python app.py PORT` serves, `python app.py --check` reads the settings and says what is wrong with them. The paths
below `/bugs` are its bugs, which a request meets: a call that blocks the loop, a list that only grows, a log in
detail, and files that are never closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cache import check_cache  # type: ignore[import-not-found]  # beside this file, where it is deployed
from prices import check, read_settings  # type: ignore[import-not-found]

DATA = Path("../../data")
MOST_LEAKED, MOST_FLOODS, MOST_OPEN = 160, 640, 400
"""Megabytes, writes of 0.1 MB and files at which the bugs end, for the sake of the machine."""
BLOCK, LINE = 1_000_000, "DEBUG the drawer is shut\n"


class Till:
    """The till: prices, and orders that it keeps on its disk."""

    def __init__(self) -> None:
        self.currency, self.prices = read_settings()
        self.leaked: list[bytearray] = []
        self.opened: list[int] = []
        self.bugs: set[asyncio.Future[None]] = set()
        self.paths: dict[str, Callable[[], dict[str, Any]]] = {
            "/health": self.health,
            "/order": self.order,
            "/bugs/hang": self.hang,
            "/bugs/leak": self.leak,
            "/bugs/flood": self.flood,
            "/bugs/files": self.open_files,
        }

    def health(self) -> dict[str, Any]:
        """Return the version and the sum of the prices; raise an error when sum, cache or a write to the disk fails."""
        total = sum(self.prices.values())
        check_cache(DATA / "cache")
        probe = DATA / "probe"
        probe.write_bytes(b"." * 16_384)
        probe.unlink()
        return {"version": os.environ["SERVICE_VERSION"], "total": f"{total / 100:.2f} {self.currency}"}

    def order(self) -> dict[str, Any]:
        """Append an order to the file of orders, and return how many the file has."""
        with (DATA / "orders").open("a") as orders:
            orders.write(json.dumps(self.prices) + "\n")
        return {"orders": len((DATA / "orders").read_text().splitlines())}

    def hang(self) -> dict[str, Any]:
        """Block the event loop for an hour, as a synchronous call to a server that never answers would."""
        asyncio.get_running_loop().call_soon(time.sleep, 3_600)
        return {}

    def leak(self) -> dict[str, Any]:
        """Begin to leak memory, up to 160 MB."""
        self.bugs.add(asyncio.ensure_future(self._leak()))
        return {}

    async def _leak(self) -> None:
        while len(self.leaked) < MOST_LEAKED:
            self.leaked.append(bytearray(os.urandom(1_000) * (BLOCK // 1_000)))
            await asyncio.sleep(0.005)

    def flood(self) -> dict[str, Any]:
        """Begin to flood the log, with up to 64 MB of debug lines."""
        self.bugs.add(asyncio.ensure_future(self._flood()))
        return {}

    async def _flood(self) -> None:
        for _ in range(MOST_FLOODS):
            print(LINE * (BLOCK // 10 // len(LINE)), end="", flush=True)
            await asyncio.sleep(0.02)

    def open_files(self) -> dict[str, Any]:
        """Begin to open files that are never closed, up to 400."""
        self.bugs.add(asyncio.ensure_future(self._open_files()))
        return {}

    async def _open_files(self) -> None:
        while len(self.opened) < MOST_OPEN:
            self.opened.append(os.open(os.devnull, os.O_RDONLY))
            await asyncio.sleep(0.002)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request as JSON."""
        try:
            path = (await reader.readline()).split()[1].decode()
            await reader.readuntil(b"\r\n\r\n")
            status, body = self.reply(path)
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, IndexError):
            return  # the client has gone, or speaks no HTTP
        finally:
            writer.close()

    def reply(self, path: str) -> tuple[str, bytes]:
        """Carry out the request for a path, and return the HTTP status and the JSON body of the answer."""
        if path not in self.paths:
            return "404 Not Found", b"{}"
        try:
            return "200 OK", json.dumps(self.paths[path]()).encode()
        except (OSError, ArithmeticError, TypeError, ValueError) as error:
            return "503 Service Unavailable", json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()


async def serve(port: int) -> None:
    """Serve the till over HTTP on a port of this machine until SIGTERM, and then end the process at once."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await asyncio.start_server(Till().answer, "127.0.0.1", port):
        await stop.wait()
        os._exit(0)  # what a bug has begun holds nothing up


if __name__ == "__main__":
    if sys.argv[1] == "--check":
        check()
    else:
        DATA.mkdir(exist_ok=True)
        asyncio.run(serve(int(sys.argv[1])))
