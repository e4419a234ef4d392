"""Requests to the control plane: published to `coditect.control`, answered to the process's reply queue.

Every request may be repeated: the control plane carries out the requests with one id once. So a request that was not
answered, because the broker, a dispatcher or the way between them was gone, is sent again until the time is over.
Then it expires in the broker, too: no request is carried out after its sender has stopped waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from coditect import errors
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Backoff
from coditect.broker.port import Broker
from coditect.broker.topology import base_topology
from coditect.errors import (
    CoditectError,
    ControlPlaneRequired,
    InvalidTask,
    NotFound,
    Retryable,
    SetupError,
    TooLarge,
    Unroutable,
)
from coditect.messaging.rpc import Requests
from coditect.model.duration import Duration, seconds
from coditect.model.message import NO_HEADERS, Message
from coditect.model.result import Outcome
from coditect.wire import routing
from coditect.wire.control import ANY, WAIT_MS, Verb, request
from coditect.wire.json import loads
from coditect.wire.tasks import MAX_BODY_BYTES

ASK_SECONDS = 30.0
PAGE = 1_000
"""Number of rows in one page of a listing."""
WAITS = Backoff(2.0, 8.0)
"""How long an answer of the control plane is awaited before the same request is sent again."""
PAUSES = Backoff(0.1, 2.0)
"""The pauses before a request is sent again after a retryable refusal."""
GRACE_SECONDS = 2.0
"""How long a request waits for the queue of a control plane that is just starting."""
START_ONE = "start one: `coditect dispatcher run`, or `coditect up` for everything"


class ControlPlane:
    """The sender of one process's requests to the control plane; asyncio tasks may share it."""

    def __init__(self, broker: Broker, requests: Requests, clock: Clock) -> None:
        self._broker = broker
        self._requests = requests
        self._clock = clock
        self.blobs = requests.blobs
        """The store of the large values that an answer names by blob references."""
        self.name = requests.name
        """The name of the agent or client that asks."""
        self.answered = False
        """Whether the control plane ever answered this process; if so, its silence is an outage and not its absence."""

    def new_id(self) -> str:
        """Return a new id for something that a request creates, so that a repeated request creates it only once."""
        return self._clock.new_id()

    async def ask(
        self,
        verb: Verb,
        body: dict[str, Any],
        *,
        timeout: Duration = ASK_SECONDS,
        held_seconds: float = 0.0,
        trace: Mapping[str, str] = NO_HEADERS,
    ) -> dict[str, Any]:
        """Send a request, again after silence or a retryable error until the time is over, and return the answer.

        The control plane may hold a request about a state for `held_seconds`, and answers earlier at the final state.

        Raises:
            ControlPlaneRequired: when no dispatcher answered; the request may have been carried out all the same, or
                may still be.
            Retryable: such as BrokerUnavailable, when the broker was away for all the time.
            TooLarge: when the request is over the inline limit.
            CoditectError: the refusal of the control plane, as the error that it names, such as NotFound or
                InvalidWorkflow.
        """
        identity = self._clock.new_id()
        if held_seconds:
            body = {**body, WAIT_MS: max(1, round(1000 * held_seconds))}
        message = request(verb, body, reply_to=self._requests.reply_to, correlation_id=identity, trace=trace)
        if len(message.body) > MAX_BODY_BYTES:
            raise TooLarge(
                "A request to the control plane is over the inline limit",
                verb=verb.value,
                bytes=len(message.body),
                limit=MAX_BODY_BYTES,
            )
        try:
            return await self._answer(message, verb, held_seconds, seconds(timeout))
        finally:
            self._requests.forget(identity)

    async def _answer(self, message: Message, verb: Verb, held: float, timeout: float) -> dict[str, Any]:
        now = asyncio.get_running_loop().time
        begin, end = now(), now() + timeout
        waits, pauses = WAITS.pauses(), PAUSES.pauses()
        wait = next(waits)
        missed: CoditectError = _required("The control plane does not answer", verb)
        while (left := end - now()) > 0:
            try:
                outcome = await self._asked_once(message, wait=held + wait, left=left)
            except (Unroutable, NotFound) as error:  # a wiped broker lacks the exchange, too
                missed = _required("No control plane is there", verb)
                if not self.answered and now() - begin >= GRACE_SECONDS:
                    raise missed from error
            except Retryable as error:
                missed = error
            else:
                if outcome is None:
                    missed = await self._silence(verb)
                    wait = next(waits)
                    continue
                self.answered = True
                if outcome.failure is None:
                    return _object(outcome)
                missed = refusal(outcome)
                if not missed.retryable:
                    raise missed
            await asyncio.sleep(max(0.0, min(next(pauses), end - now())))
        raise missed

    async def _asked_once(self, message: Message, *, wait: float, left: float) -> Outcome | None:
        """Send the request once and return the outcome; None when no answer came in time.

        Raises:
            SetupError: when the client is closed meanwhile.
        """
        message = replace(message, expiration_ms=max(1, round(1000 * left)))
        reply = self._requests.expect(message.correlation_id or "")
        await self._broker.publish(message, exchange=routing.CONTROL, routing_key=ANY, timeout_seconds=left)
        await asyncio.wait({reply}, timeout=min(wait, left))
        if reply.cancelled():
            raise SetupError("The client is closed", fix="ask before it closes")
        return reply.result() if reply.done() else None

    async def _silence(self, verb: Verb) -> CoditectError:
        """Return the error for a missing answer; raise it at once if none ever came and no dispatcher takes requests.

        Raises:
            ControlPlaneRequired: when there is no control plane that could answer later.
        """
        missed = _required("The control plane does not answer", verb)
        if not self.answered:
            try:
                stats = await self._broker.stats(routing.CONTROL_QUEUE)
            except Retryable as error:
                return error
            if stats is None or not stats.consumers:
                raise _required("No control plane is there", verb)
        return missed


async def pages(
    control: ControlPlane, verb: Verb, field: str, asked: Mapping[str, Any], *, limit: int | None = None
) -> AsyncIterator[Any]:
    """Yield the rows of a listing by the control plane, page after page, at most `limit` of them."""
    after: object = None
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        answer = await control.ask(verb, {**asked, "after": after, "limit": size})
        rows = rows_of(answer, field)
        for row in rows[:left]:
            yield row
        after = answer.get("next")
        if after is None:
            return
        left = None if left is None else left - len(rows)


def rows_of(answer: Mapping[str, Any], field: str) -> Sequence[Any]:
    """Return the list of rows in an answer of the control plane.

    Raises:
        InvalidTask: when the answer has no list in that field.
    """
    rows = answer.get(field)
    if not isinstance(rows, list):
        raise InvalidTask("The control plane's answer lacks its rows", field=field)
    return rows


@asynccontextmanager
async def asking(broker: Broker, clock: Clock, *, name: str) -> AsyncIterator[ControlPlane]:
    """Yield a `ControlPlane` for a few requests over an open broker; delete its reply queue at the end.

    Raises:
        BrokerUnavailable: when the broker does not answer.
    """
    await broker.declare(base_topology(), lazily=True)
    requests = Requests(broker, name=name)
    try:
        async with requests:
            yield ControlPlane(broker, requests, clock)
    finally:
        with suppress(CoditectError):  # left behind, it expires
            await broker.delete_queue(requests.reply_to)


def refusal(outcome: Outcome) -> CoditectError:
    """Return the error that a refusal by the control plane names, with its details; CoditectError for unknown names."""
    failure = outcome.failure
    assert failure is not None
    found = getattr(errors, failure.type, None)
    kind = found if isinstance(found, type) and issubclass(found, CoditectError) else CoditectError
    told = loads(outcome.body).get("facts")
    facts = {str(name): fact for name, fact in told.items()} if isinstance(told, dict) else {}
    if failure.fix:
        facts["fix"] = failure.fix
    error: CoditectError = kind(failure.message or failure.type)
    error.facts |= facts
    error.retryable = failure.retryable
    return error


def _required(sentence: str, verb: Verb) -> ControlPlaneRequired:
    return ControlPlaneRequired(sentence, request=verb.value, fix=START_ONE)


def _object(outcome: Outcome) -> dict[str, Any]:
    value = loads(outcome.body)
    if not isinstance(value, dict):
        raise CoditectError("The control plane's answer is no object", given=type(value).__name__)
    return value
