"""Handlers in processes of their own: started when needed, reused, and killed with their group by a timeout."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import struct
import sys
from pathlib import Path
from typing import Any

from coditect.agent.context import Context
from coditect.agent.declaration import Capability
from coditect.errors import CoditectError, InvalidTask
from coditect.model.json import dumps, loads
from coditect.model.task import Task

log = logging.getLogger(__name__)

FRAME = struct.Struct(">IB")
TASK_FRAME, VALUE_FRAME, FAILURE_FRAME, PROGRESS_FRAME = range(4)
STREAM_BYTES = 4 * 1024 * 1024


class ProcessDied(CoditectError):
    """The handler's process ended before its result: killed, out of memory, or it exited."""

    retryable = True


class RemoteError(Exception):
    """An exception in the handler's process; carries its type name and traceback as text."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__(facts.get("message", ""))
        self.remote_type = str(facts.get("type", ""))
        self.remote_traceback = str(facts.get("traceback", ""))
        self.retryable = facts.get("retryable") is not False
        """Whether the capability's retry policy tries it again."""


class _Worker:
    """One process, one task at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def call(self, header: dict[str, Any], body: bytes, context: Context) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ProcessDied("The handler's process has no pipes")
        head = dumps(header)
        try:
            stdin.write(FRAME.pack(len(head), TASK_FRAME) + head + FRAME.pack(len(body), TASK_FRAME) + body)
            await stdin.drain()
            while True:
                size, kind = FRAME.unpack(await stdout.readexactly(FRAME.size))
                payload = await stdout.readexactly(size)
                if kind == VALUE_FRAME:
                    return payload
                if kind == FAILURE_FRAME:
                    raise _remote(loads(payload))
                share, note = loads(payload)
                await context.progress(share, note)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            code = await self._process.wait()
            raise ProcessDied("The handler's process ended before its result", exit_code=code) from error

    async def kill(self) -> None:
        """Ends the process and everything it started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("The handler's process was gone already", extra={"pid": self._process.pid})
        await self._process.wait()


def _remote(facts: dict[str, Any]) -> Exception:
    if facts.get("invalid_input"):
        return InvalidTask(str(facts.get("message", "")))
    return RemoteError(facts)


class Workers:
    """The processes of one agent; an idle one is kept per capability and slot."""

    def __init__(self) -> None:
        self._idle: dict[str, list[_Worker]] = {}
        self._busy: set[_Worker] = set()

    async def run(self, capability: Capability, task: Task, context: Context) -> bytes:
        """The result's body. A cancellation (a timeout is one) kills the process.

        Raises: RemoteError for the handler's exception, InvalidTask when the input does not fit, ProcessDied.
        """
        worker = self._take(capability) or await _start(capability)
        self._busy.add(worker)
        header = {
            "task_id": context.task_id,
            "agent_id": context.agent_id,
            "attempt": task.attempt,
            "redrive": task.redrive,
            "priority": task.priority.value,
            "deadline_ms": task.limits.deadline_ms,
            "workspace": str(context.workspace),
        }
        try:
            body = await worker.call(header, task.body, context)
        except (RemoteError, InvalidTask):
            self._keep(capability, worker)
            raise
        except BaseException:
            await asyncio.shield(worker.kill())
            raise
        else:
            self._keep(capability, worker)
            return body
        finally:
            self._busy.discard(worker)

    def _take(self, capability: Capability) -> _Worker | None:
        idle = self._idle.get(capability.name, [])
        while idle:
            worker = idle.pop()
            if worker.alive:
                return worker
        return None

    def _keep(self, capability: Capability, worker: _Worker) -> None:
        self._idle.setdefault(capability.name, []).append(worker)

    async def close(self) -> None:
        """Ends every process."""
        workers = [*self._busy, *(one for idle in self._idle.values() for one in idle)]
        self._idle.clear()
        for worker in workers:
            if worker.alive:
                await worker.kill()


async def _start(capability: Capability) -> _Worker:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "coditect.agent.worker_process",
        _source_file(capability),
        capability.name,
        str(os.getpid()),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=STREAM_BYTES,
        start_new_session=True,
    )
    return _Worker(process)


def _source_file(capability: Capability) -> str:
    return str(Path(capability.handler.__code__.co_filename).resolve())
