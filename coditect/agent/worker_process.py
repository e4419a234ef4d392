"""The other end of `workers`: loads the agent's file, and runs one task after the other until stdin ends."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from coditect.agent.context import Context
from coditect.agent.declaration import Capability, Where
from coditect.agent.loading import load_agents
from coditect.agent.parent import die_with
from coditect.agent.workers import FAILURE_FRAME, FRAME, PROGRESS_FRAME, VALUE_FRAME
from coditect.errors import InvalidTask, SetupError
from coditect.loop import run_loop
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.json import dumps, loads
from coditect.model.task import Limits, Task


class _Pipe:
    """Frames to the agent."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def send(self, kind: int, payload: bytes) -> None:
        self._stream.write(FRAME.pack(len(payload), kind) + payload)
        self._stream.flush()


class _ProcessContext(Context):
    """A context whose only way to the fleet is its progress."""

    def __init__(self, task: Task, header: dict[str, Any], pipe: _Pipe) -> None:
        super().__init__(task, TaskId(header["task_id"]), AgentId(header["agent_id"]), None)
        self._workspace = header["workspace"]
        self._pipe = pipe

    @property
    def workspace(self) -> Path:
        """A folder of this execution's own; the agent removes it."""
        return Path(str(self._workspace))

    async def progress(self, share: float, note: str = "") -> None:
        """Tells the agent, which tells the fleet."""
        self.report(share, note)

    def report(self, share: float, note: str = "") -> None:
        """The same for a plain handler."""
        self._pipe.send(PROGRESS_FRAME, dumps([share, note]))


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(FRAME.size)
    if len(head) < FRAME.size:
        return None
    size, _ = FRAME.unpack(head)
    return stream.read(size)


def _run(capability: Capability, header: dict[str, Any], body: bytes, value: Any, pipe: _Pipe) -> bytes:
    task = Task(
        capability.name,
        Priority(header["priority"]),
        body,
        limits=Limits(deadline_ms=header["deadline_ms"]),
        attempt=header["attempt"],
        redrive=header["redrive"],
    )
    shape = capability.signature
    context = _ProcessContext(task, header, pipe)
    arguments = (value, context) if shape.wants_context else (value,)
    result = capability.handler(*arguments)
    if asyncio.iscoroutine(result):
        result = run_loop(result)
    return shape.output.encode(result)


def _answer(capability: Capability, header: dict[str, Any], body: bytes, pipe: _Pipe) -> tuple[int, bytes]:
    """The frame that tells how the task ended."""
    try:
        value = capability.signature.input.decode(body)
    except InvalidTask as error:
        return FAILURE_FRAME, _facts(capability, error, invalid_input=True)
    try:
        return VALUE_FRAME, _run(capability, header, body, value, pipe)
    except Exception as error:  # noqa: BLE001 - the boundary: any failure travels to the agent
        return FAILURE_FRAME, _facts(capability, error)


def _facts(capability: Capability, error: Exception, *, invalid_input: bool = False) -> bytes:
    return dumps(
        {
            "type": type(error).__name__,
            "message": str(error)[:2_000],
            "traceback": traceback.format_exc()[-8_000:],
            "retryable": capability.retry.allows(error),
            "invalid_input": invalid_input,
        }
    )


def _serve(capability: Capability, source: BinaryIO, pipe: _Pipe) -> None:
    while (head := _read(source)) is not None:
        body = _read(source)
        if body is None:
            return
        pipe.send(*_answer(capability, loads(head), body, pipe))


def main(path: str, capability_name: str, agent_pid: int) -> None:
    """Serves one capability of the agent in this file; ends with the agent's process."""
    die_with(agent_pid)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a handler prints goes to stderr, not between the frames
    for agent in load_agents(path):
        for capability in agent.capabilities:
            if capability.name == capability_name and capability.where is Where.PROCESS:
                _serve(capability, sys.stdin.buffer, _Pipe(replies))
                return
    raise SetupError("The file declares no such capability with process=True", path=path, capability=capability_name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
