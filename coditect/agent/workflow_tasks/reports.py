"""Reports of results and progress to the owners of workflow tasks, on the exchange `coditect.results`, by shard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker, Promise
from coditect.errors import CoditectError
from coditect.model.message import Message
from coditect.model.task import Owner
from coditect.wire import routing
from coditect.wire.attempt_results import LONGEST_BYTES, MOST_BYTES, MOST_TOGETHER, may_share, results_message
from coditect.wire.control import Progress, progress_message
from coditect.wire.tasks import AttemptResult, attempt_result_message

log = logging.getLogger(__name__)

PUBLISH_SECONDS = 60.0
PROGRESS_SECONDS = 5.0
"""How long the publish of a progress message may take; a later message makes up for a lost one."""
GATHER_SECONDS = 0.1
"""The time within which reports of progress are gathered into one message."""
EVERY_SECONDS = 1.0
"""The least time between two progress messages."""
MOST_NOTE = 500


class ResultBatch:
    """Several results that travel in one message; its confirm or error goes to the future of each result."""

    def __init__(self) -> None:
        self.results: list[AttemptResult] = []
        self.promises: list[Promise] = []
        self._bytes = 0

    @property
    def full(self) -> bool:
        """True when the batch has no room for another result, by number or by bytes."""
        return len(self.results) >= MOST_TOGETHER or self._bytes > MOST_BYTES - LONGEST_BYTES

    def add(self, result: AttemptResult, promise: Promise) -> None:
        """Add one small result (see `may_share`), and the future that gets the message's confirm or error."""
        self.results.append(result)
        self.promises.append(promise)
        self._bytes += len(result.outcome.body)

    def done(self) -> bool:
        """Tell whether the futures of all results in the batch are done."""
        return all(one.done() for one in self.promises)

    def set_result(self, result: None) -> None:
        """Tell the future of each result, unless it is done already, that the broker confirmed the message."""
        for one in self._waiting():
            one.set_result(result)

    def set_exception(self, exception: BaseException) -> None:
        """Tell the future of each result, unless it is done already, with which error the publish failed."""
        for one in self._waiting():
            one.set_exception(exception)

    def _waiting(self) -> list[Promise]:
        return [one for one in self.promises if not one.done()]


class Reports:
    """The publisher of results and progress of one agent process to the owners of its workflow tasks."""

    def __init__(self, broker: Broker, background: Supervisor, clock: Clock, *, heard: Callable[[str], None]) -> None:
        """Create the publisher; `heard` is called with the shard after each confirmed message, except by `post`."""
        self._heard = heard
        self._broker = broker
        self._background = background
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._posts: dict[str, ResultBatch] = {}
        """The results of this turn of the loop, by shard."""
        self._pending: dict[Owner, Progress] = {}
        self._last_said: dict[tuple[str, str], tuple[float, str]] = {}
        self._flushed = -EVERY_SECONDS
        self._timer: asyncio.TimerHandle | None = None

    async def result(self, result: AttemptResult) -> None:
        """Publish the result of an attempt to the task's owner, and return after the broker's confirm.

        Raises:
            Unroutable: when no dispatcher ever had this shard.
            CoditectError: any other error of `Broker.publish`.
        """
        await self.tell(self._message(result), result.owner.origin)

    def post(self, result: AttemptResult, promise: Promise) -> None:
        """Post a result without waiting; small results for one shard in one event-loop iteration share a message.

        The promise is resolved by the confirm, or fails with the error of the publish.
        """
        origin = result.owner.origin
        if not may_share(result):
            self._post(self._message(result), promise, origin)
            return
        if not self._posts:
            self._loop.call_soon(self._post_all)
        together = self._posts.setdefault(origin, ResultBatch())
        together.add(result, promise)
        if together.full:
            del self._posts[origin]
            self._post_together(together, origin)

    def _post_all(self) -> None:
        posts, self._posts = self._posts, {}
        for origin, together in posts.items():
            self._post_together(together, origin)

    def _post_together(self, together: ResultBatch, origin: str) -> None:
        if len(together.results) == 1:
            self._post(self._message(together.results[0]), together.promises[0], origin)
        else:
            self._post(results_message(together.results, message_id=self._clock.new_id()), together, origin)

    def _post(self, message: Message, promise: Promise, origin: str) -> None:
        self._broker.post(
            message,
            promise,
            exchange=routing.RESULTS,
            routing_key=origin,
            timeout_seconds=PUBLISH_SECONDS,
            wait_when_full=True,
        )

    def _message(self, result: AttemptResult) -> Message:
        return attempt_result_message(result, message_id=self._clock.new_id())

    async def tell(self, message: Message, origin: str, *, within_seconds: float = PUBLISH_SECONDS) -> None:
        """Publish a message to the owner of a shard, and return after the broker's confirm.

        Raises:
            Unroutable: when no dispatcher ever had this shard.
            CoditectError: any other error of `Broker.publish`.
        """
        await self._broker.publish(
            message, exchange=routing.RESULTS, routing_key=origin, timeout_seconds=within_seconds
        )
        self._heard(origin)

    def progress(self, owner: Owner, share: float, note: str) -> None:
        """Report how far a task is, at most once; of the reports within a second only the last of each task is sent."""
        note = note[:MOST_NOTE]
        self._last_said[(owner.workflow, owner.node)] = (share, note)
        self._say(owner, share, note)

    def alive(self, owners: Iterable[Owner]) -> None:
        """Report that the workflow tasks of some owners still run, by a repetition of each task's last progress."""
        for owner in owners:
            self._say(owner, *self._last_said.get((owner.workflow, owner.node), (0.0, "")))

    def forget(self, owner: Owner) -> None:
        """Forget the last progress of a workflow task that ended."""
        if self._last_said:
            self._last_said.pop((owner.workflow, owner.node), None)
            self._pending.pop(owner, None)

    def _say(self, owner: Owner, share: float, note: str) -> None:
        at_ms = self._clock.now_ms()
        self._pending[owner] = Progress(owner.workflow, owner.node, owner.fence, share, note, at_ms)
        if self._timer is None:
            at = max(self._loop.time() + GATHER_SECONDS, self._flushed + EVERY_SECONDS)
            self._timer = self._loop.call_at(at, self._flush)

    def _flush(self) -> None:
        self._timer, self._flushed = None, self._loop.time()
        by_shard: dict[str, list[Progress]] = {}
        for owner, progress in self._pending.items():
            by_shard.setdefault(owner.origin, []).append(progress)
        self._pending.clear()
        for origin, said in by_shard.items():
            self._background.start(self._send(said, origin), name="progress")

    async def _send(self, said: list[Progress], origin: str) -> None:
        try:
            await self.tell(progress_message(said), origin, within_seconds=PROGRESS_SECONDS)
        except CoditectError as error:
            log.debug("Progress was not told", extra={"shard": origin, "reason": str(error)})
