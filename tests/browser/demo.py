"""A demo that stays after its work, for the tests and the pictures of its dashboard."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.servers import ROOT


@dataclass(frozen=True, slots=True)
class Kept:
    """A demo that stays after its work."""

    process: Process
    url: str
    key: str
    said: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@asynccontextmanager
async def kept_demo() -> AsyncIterator[Kept]:
    """Run `make demo KEEP=1` until it says that it stays; at the end Ctrl-C stops it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "agents.demo", "--keep", cwd=ROOT, stdout=PIPE, stderr=STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    said, url, key = [], "", ""
    try:
        async for line in process.stdout:
            said.append(line.decode())
            if said[-1].startswith("The dashboard is at "):
                url, _, key = said[-1].removeprefix("The dashboard is at ").strip().partition("#/fleet?key=")
            if "Ctrl-C stops it" in said[-1]:
                break
        yield Kept(process, url, key, "".join(said))
        process.send_signal(signal.SIGINT)
        rest = (await process.stdout.read()).decode()
        assert await process.wait() == 0, rest
        assert "Everything is stopped again" in rest
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
