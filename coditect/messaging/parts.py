"""The reader's side of a streamed result: the parts in order, without repeats, and at most 64 ahead of the reader.

The agent sends at most so many parts ahead as the reader has given credit for, so that a slow reader holds up the agent
and fills neither the broker nor itself. Parts wait in the process's reply queue, which keeps its name over reconnects:
after a lost connection the reading goes on with the next part.
"""

from __future__ import annotations

import asyncio
import logging

from coditect.blobs import Blobs, whole
from coditect.broker.port import Broker
from coditect.errors import CoditectError, InputError, ResultTimeout, StreamRestarted
from coditect.model.ids import TaskId
from coditect.model.message import Message
from coditect.model.result import Outcome
from coditect.wire import routing
from coditect.wire.parts import Credit, Part, read_part

log = logging.getLogger(__name__)

AHEAD = 64
"""How many parts an agent may send ahead of the reader."""
CREDIT_SECONDS = 10.0
LATE_SECONDS = 10.0
"""How long parts may still arrive after the task's outcome, which the agent sends last."""


class PartReader:
    """The reader of the parts of one streamed task, which orders the parts that arrive and drops repeated ones.

    Another execution of the task, after a failure or the loss of an agent, begins its parts again from the first one.
    """

    def __init__(self, broker: Broker, blobs: Blobs, task_id: TaskId) -> None:
        self._broker = broker
        self._blobs = blobs
        self._task_id = task_id
        self._first: Part | None = None
        """A part of the execution that is read: it names the execution, the attempt and the agent."""
        self._left: set[str] = set()
        """The executions that are not read any more."""
        self._held: dict[int, Part] = {}
        """The parts that arrived and were not handed out, by number; fewer than AHEAD."""
        self._next = 0
        """The number of the part to hand out next."""
        self._until = AHEAD
        """The number up to which the agent may send parts."""
        self._total: int | None = None
        """How many parts the execution has; None before its end."""
        self._lost: int | None = None
        """How many parts were handed out of an execution that another one has replaced; None when there is none."""
        self._turn: asyncio.Future[None] | None = None

    def arrived(self, message: Message) -> None:
        """Handle an arrived message: a part of the result, the end of the parts, or a notice that the agent waits.

        The agent waits when it has sent all parts that the reader allowed; its notice makes the reader allow more.

        Raises:
            InvalidTask: when the message is no part.
        """
        part = read_part(message)
        if not self._is_read(part):
            return
        if part.last:
            self._total = part.number
        elif not part.body:
            self._give_credit()  # the agent waits: the last credit may be lost
        elif self._next <= part.number < self._until:
            self._held[part.number] = part
        self._wake()

    def _is_read(self, part: Part) -> bool:
        """Tell whether a part is of the execution being read, or of a newer one, which is then read in its place."""
        first = self._first
        if first is not None and first.execution == part.execution:
            return True
        if part.execution in self._left or (first is not None and part.attempt < first.attempt):
            return False
        if first is not None:
            self._left.add(first.execution)
            if self._next and self._lost is None:
                self._lost = self._next
            self._held.clear()
            self._next, self._until, self._total = 0, AHEAD, None
        self._first = part
        return True

    async def next(self, reply: asyncio.Future[Outcome], *, timeout_seconds: float) -> bytes | None:
        """Wait for the result's next part; return its JSON, or None if all were read or the task ended without a value.

        Raises:
            StreamRestarted: when another execution has begun the parts again; the next call returns its first part.
            ResultTimeout: when no part came in time, or parts are missing at the end.
            InputError: when the task's handler does not yield its result, or the parts are being read already.
            CoditectError: the errors of `Blobs.get`, for a part over the inline limit.
        """
        if self._turn is not None:
            raise InputError("The parts of this task are read already", task_id=self._task_id, fix="read them once")
        until = asyncio.get_running_loop().time() + timeout_seconds
        late = until
        while not (part := self._ready()) and not self._ended(reply):
            now = asyncio.get_running_loop().time()
            if reply.done():
                late = min(late, now + LATE_SECONDS)
            if now >= late:
                raise self._missing(reply)
            await self._woken(reply, late - now)
        if part is None:
            return None
        body = await whole(self._blobs, part.body) if part.claims else part.body
        if self._held.pop(part.number, None) is part:  # else another execution began meanwhile
            self._next += 1
            if self._until - self._next <= AHEAD // 2 and not reply.done():
                self._give_credit()
        return body

    def _ready(self) -> Part | None:
        """Return the next part of the streamed result if it has arrived, else None.

        Raises:
            StreamRestarted: when it is the part of another execution than the one before.
        """
        if self._lost is not None and self._first is not None:
            lost, self._lost = self._lost, None
            raise StreamRestarted(
                "The task is executed again, and its parts begin again",
                task_id=self._task_id,
                attempt=self._first.attempt,
                agent=self._first.agent_id,
                read=lost,
                fix="drop the parts that were read, and call stream() again",
            )
        return self._held.get(self._next)

    def _ended(self, reply: asyncio.Future[Outcome]) -> bool:
        if self._total is not None and self._next >= self._total:
            return True
        if not reply.done():
            return False
        if reply.cancelled() or reply.exception() is not None or reply.result().failure is not None:
            return True
        if self._first is None:
            fix = "await handle.result(), which has its value"
            raise InputError("This task's handler returns its result as a whole", task_id=self._task_id, fix=fix)
        return False

    def _missing(self, reply: asyncio.Future[Outcome]) -> ResultTimeout:
        if not reply.done():
            return ResultTimeout("No part came in time; the task goes on", task_id=self._task_id, read=self._next)
        fix = "submit the task again; the broker lost its reply queue"
        return ResultTimeout("Parts of the result are missing", task_id=self._task_id, read=self._next, fix=fix)

    def _give_credit(self) -> None:
        if self._first is None:
            return
        self._until = self._next + AHEAD
        promise: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        promise.add_done_callback(self._told)
        self._broker.post(
            Credit(self._first.execution, self._until).message(),
            promise,
            exchange=routing.AGENTS,
            routing_key=routing.mailbox_key(self._first.agent_id),
            timeout_seconds=CREDIT_SECONDS,
        )

    def _told(self, promise: asyncio.Future[None]) -> None:
        error = promise.exception()
        if isinstance(error, CoditectError):  # a living agent asks again, and of a dead one another execution comes
            log.debug("A credit did not reach its agent", extra={"task_id": self._task_id, "reason": str(error)})
        elif error is not None:
            raise error

    def _wake(self, _: object = None) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    async def _woken(self, reply: asyncio.Future[Outcome], seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._turn = loop.create_future()
        timer = loop.call_later(seconds, self._wake)
        if not reply.done():
            reply.add_done_callback(self._wake)
        try:
            await self._turn
        finally:
            self._turn = None
            timer.cancel()
            reply.remove_done_callback(self._wake)
