"""A folder and an HTTP service that check the fence of a lock, and an agent that writes to the folder under one.

A lock without a resource like these promises nothing: its holder may stand still for longer than the lock lives, and
write after the next one. Each file remembers the highest fence under which it was written, and refuses a lower one.
"""

import fcntl
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from coditect import Agent, Context


class StaleFence(Exception):
    """A write came too late: another holder of the lock has written since."""


class FencedFolder:
    """A folder whose files are written under fences; processes may share it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str, fence: int) -> None:
        """Write a file, unless it was written under a higher fence."""
        file = self.path / Path(name).name
        with (self.path / f".{file.name}.fence").open("a+") as seen:
            fcntl.flock(seen, fcntl.LOCK_EX)  # look and write in one step, whoever else writes
            seen.seek(0)
            highest = int(seen.read() or 0)
            if fence < highest:
                raise StaleFence(f"{file.name} was written under {highest}, and {fence} is older")
            seen.truncate(0)
            seen.write(str(fence))
            seen.flush()
            os.fsync(seen.fileno())
            fresh = file.with_suffix(".new")
            fresh.write_text(text)
            fresh.replace(file)


def fenced_service(folder: FencedFolder) -> ThreadingHTTPServer:
    """A web service over the folder: `PUT /name` with the header `X-Fence`; 409 for a fence that is too old."""

    class Put(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"])).decode()
            try:
                folder.write(self.path, text, int(self.headers["X-Fence"]))
            except StaleFence as error:
                self.send_error(409, str(error))
            else:
                self.send_response(204)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Put)


agent = Agent("archivist")


@agent.capability("archive.note")
async def note(text: str, ctx: Context) -> int:
    """Write the note, and return the fence under which it was written."""
    async with ctx.lock("archive:note") as lock:
        FencedFolder("archive").write("note.txt", text, lock.fence)
        return lock.fence
