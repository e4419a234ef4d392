"""The sender of a streamed result's parts: ordered, bounded by the requester's credit, and confirmed by the broker.

The agent keeps no part that the broker has confirmed: the parts wait in the requester's reply queue, which outlives a
lost connection of either side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coditect.errors import NotFound, Unroutable
from coditect.messaging.rpc import Requests
from coditect.model.ids import AgentId
from coditect.model.task import MOST_AHEAD, Task
from coditect.wire.parts import Credit, Part, part_message
from coditect.wire.routing import Address
from coditect.wire.tasks import MAX_BODY_BYTES

PUBLISH_SECONDS = 60.0
WAITS_SECONDS = 5.0
"""The pause after which, each time, a sender without credit reports its wait: a credit may be lost, a reader gone."""
NO_READER = "its parts have no reader any more"


class PartSender:
    """The sender of the parts of one streamed result; `send` waits while the requester or the broker is not ready."""

    def __init__(
        self, task: Task, agent_id: AgentId, requests: Requests, address: Address, *, cancel: Callable[[str], None]
    ) -> None:
        """Prepare to send a task's parts to `address`; `cancel` ends a handler whose parts no queue takes any more."""
        self.execution_id = requests.new_token()
        """The random id by which the parts and their credit name the execution."""
        self._task = task
        self._agent_id = agent_id
        self._broker = requests.broker
        self._blobs = requests.blobs
        self._address = address
        self._cancel = cancel
        self._sent = 0
        self._until = task.stream
        """The number up to which parts may be sent."""
        self._unconfirmed = 0
        self._error: BaseException | None = None
        self._turn: asyncio.Future[None] | None = None

    def credit(self, credit: Credit) -> None:
        """Let the handler send parts up to the number that the requester allows; older or repeated news is ignored."""
        self._until = max(self._until, credit.until)
        self._wake()

    async def send(self, body: bytes) -> None:
        """Post the next part, a large one as a blob, once credit allows it and few enough parts await their confirm.

        A part over the inline limit is large. The confirm of this part is not awaited; `end` awaits all of them.

        Raises:
            TooLarge: when the part is over the inline limit and the blob store does not take it.
            BlobUnavailable: when the blob store does not answer; retryable.
            CoditectError: when an earlier part could not be published; retryable.
        """
        while self._error is None and (self._sent >= self._until or self._unconfirmed >= MOST_AHEAD):
            if not await self._woken_within(WAITS_SECONDS) and not self._unconfirmed:
                self._post(b"")
        if self._error is not None:
            raise self._error
        claims = len(body) > MAX_BODY_BYTES
        self._post((await self._blobs.put(body)).document if claims else body, claims=claims)
        self._sent += 1

    async def end(self, *, complete: bool) -> int:
        """Wait until the broker has all parts, and return their number; with `complete`, first send an end marker.

        Raises:
            CoditectError: when a part could not be published; retryable.
        """
        if complete:
            self._post(b"", last=True)
        while self._error is None and self._unconfirmed:
            await self._woken_within(WAITS_SECONDS)
        if self._error is not None:
            raise self._error
        return self._sent

    def _post(self, body: bytes, *, last: bool = False, claims: bool = False) -> None:
        part = Part(self.execution_id, self._sent, self._agent_id, self._task.attempt, body, last, claims)
        promise: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        promise.add_done_callback(self._published)
        self._unconfirmed += 1
        self._broker.post(
            part_message(part, self._task),
            promise,
            exchange=self._address.exchange,
            routing_key=self._address.routing_key,
            timeout_seconds=PUBLISH_SECONDS,
        )

    def _published(self, promise: asyncio.Future[None]) -> None:
        self._unconfirmed -= 1
        error = promise.exception()
        if isinstance(error, Unroutable | NotFound):
            self._cancel(NO_READER)
        elif error is not None:
            self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    async def _woken_within(self, seconds: float) -> bool:
        """Wait for a credit, or a publish's confirm or error, some seconds at most; return whether one came."""
        self._turn = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._turn}, timeout=seconds)
        return self._turn.done()
