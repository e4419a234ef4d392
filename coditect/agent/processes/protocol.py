"""The protocol between an agent and its worker processes: frames of a kind, a JSON head and a body.

::

    agent  → worker   TASK      head: the task's key, headers and ids     body: its input
                      ANSWER    head: number, and result or error         body: the result's value
    worker → agent    READY     the handler is loaded
                      UNUSABLE  head: why it cannot be loaded             (the worker ends)
                      VALUE                                               body: the handler's value
                      FAILURE   head: the exception's facts
                      CALL      head: number, service and arguments       body: the argument that is bytes
                      ABANDON   head: number of a call whose answer is not awaited any more
                      LEAVE     head: number of a call of `breaker`, and the verdict of its end
"""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass
from enum import IntEnum, auto
from typing import Any, BinaryIO

from coditect.wire.json import dumps, loads

_SIZES = struct.Struct(">BII")


class FrameKind(IntEnum):
    """The kind of a message between agent and worker process, such as a task, its value, or a call of a service.

    The module's table shows direction, head and body of each kind.
    """

    TASK = auto()
    ANSWER = auto()
    READY = auto()
    UNUSABLE = auto()
    VALUE = auto()
    FAILURE = auto()
    CALL = auto()
    ABANDON = auto()
    LEAVE = auto()


@dataclass(frozen=True, slots=True)
class Frame:
    """A message between agent and worker process: a kind, a head of JSON values, and a body of bytes."""

    kind: FrameKind
    head: Any = None
    body: bytes = b""

    def packed(self) -> bytes:
        """Return the frame's bytes: the kind and the sizes of head and body, then head and body."""
        head = dumps(self.head)
        return _SIZES.pack(self.kind, len(head), len(self.body)) + head + self.body


async def receive(stream: asyncio.StreamReader) -> Frame:
    """Read the next frame from an asyncio stream, and return it.

    Raises:
        IncompleteReadError: when the stream ends.
    """
    kind, head, body = _SIZES.unpack(await stream.readexactly(_SIZES.size))
    return Frame(FrameKind(kind), loads(await stream.readexactly(head)), await stream.readexactly(body))


def read(stream: BinaryIO) -> Frame | None:
    """Read the next frame with blocking calls, and return it; None when the stream ends."""
    start = stream.read(_SIZES.size)
    if len(start) < _SIZES.size:
        return None
    kind, head, body = _SIZES.unpack(start)
    content = stream.read(head + body)
    return Frame(FrameKind(kind), loads(content[:head]), content[head:]) if len(content) == head + body else None
