"""The answers for tasks that no agent finished, since the capability has no queue or the broker gave the task up.

The publisher of a task is answered; for a workflow task its shard is. The answers are made from copies
(`broker.topology.notices`); the originals lie in ``unrouted`` and ``dead.<capability>`` whether a dispatcher runs or
not. Several dispatchers share the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from types import TracebackType
from typing import Self

from coditect.broker.port import Broker, Consumer, Delivery
from coditect.broker.topology import base_topology, notices
from coditect.errors import (
    CoditectError,
    InputError,
    NotFound,
    Overloaded,
    RegistryUnavailable,
    Retryable,
    SetupError,
    Unroutable,
)
from coditect.model.capability import check_capability_name, nearest_names
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import Owner
from coditect.operations.letter import broker_reason, read_dead_letter
from coditect.registry.port import Registry
from coditect.telemetry.metrics import UNDELIVERABLE, Counter
from coditect.wire import routing, tasks
from coditect.wire.json import dumps
from coditect.wire.routing import Address, ReturnAddresses, task_target
from coditect.wire.tasks import owner_of
from dispatcher.ports import Ports

log = logging.getLogger(__name__)

NOTICES_PREFETCH = 16
"""The most unsettled copies from each queue of notices; each may be as large as the broker's message limit."""
NOTICE_ANSWER_SECONDS = 30.0
NOTICE_RETRY_SECONDS = 1.0
MAX_NOTICE_TRIES = 20
OFFERED_NAMES_SECONDS = 1.0
MAX_REMEMBERED_NOTICES = 10_000


class Notices:
    """The consumer in one dispatcher that answers the publishers of tasks that no queue took or the broker gave up.

    `async with` declares and consumes the queues of copies. At least once: an answer is confirmed before its copy is
    acked. A copy that comes again because the connection broke in between is recognised and not answered twice by the
    same process.
    """

    def __init__(self, ports: Ports, registry: Registry, *, addresses: ReturnAddresses) -> None:
        self._addresses = addresses
        outcome = partial(ports.metrics.counter, UNDELIVERABLE)
        self.answered, self.unclaimed = outcome(outcome="answered"), outcome(outcome="unclaimed")
        self.ignored, self.failed = outcome(outcome="ignored"), outcome(outcome="failed")
        self.dropped = outcome(outcome="dropped")
        self._dropped = Dropped(ports.broker, self.dropped)
        self._broker, self._events, self._background = ports.broker, ports.events, ports.background
        self._clock = ports.clock
        self._registry = registry
        self._consumers: list[Consumer] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._known: frozenset[str] = frozenset()
        self._known_until = 0.0
        self._looking = asyncio.Lock()
        self._answered_keys: OrderedDict[bytes, None] = OrderedDict()

    async def __aenter__(self) -> Self:
        await self._broker.declare(base_topology() + notices())
        for queue in (routing.UNROUTED_NOTICES, routing.DEAD_NOTICES):
            consumer = await self._broker.consume(queue, self._arrived, prefetch=NOTICES_PREFETCH, group="notices")
            self._consumers.append(consumer)
        self._counting = self._background.keep(self._dropped.run, name="dropped copies", critical=False, idle=True)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counting.cancel()
        for consumer in self._consumers:
            await consumer.cancel()
        if self._under_way:
            await asyncio.wait(tuple(self._under_way), timeout=NOTICE_ANSWER_SECONDS)

    def _arrived(self, delivery: Delivery) -> None:
        self._dropped.handed_out += delivery.queue == routing.UNROUTED_NOTICES
        work = self._background.start(self._guarded(delivery), name="notice")
        self._under_way.add(work)
        work.add_done_callback(self._under_way.discard)

    async def _guarded(self, delivery: Delivery) -> None:
        """Answer for an undeliverable task and ack its copy; after an error drop it, or requeue it if retryable.

        It is requeued up to 20 times (`MAX_NOTICE_TRIES`).
        """
        try:
            await self._deal_with(delivery)
        except asyncio.CancelledError:
            delivery.requeue()
            raise
        except Retryable as error:
            log.warning("A notice could not be answered yet", extra={"queue": delivery.queue, "reason": str(error)})
            await self._return(delivery)
        except Exception:
            self.failed.value += 1
            log.exception("A notice could not be dealt with; it is dropped", extra={"queue": delivery.queue})
            delivery.ack()

    async def _return(self, delivery: Delivery) -> None:
        if delivery.delivery_count >= MAX_NOTICE_TRIES:
            self.failed.value += 1
            log.error("A notice was tried too often; it is dropped", extra={"queue": delivery.queue})
            delivery.ack()
            return
        await asyncio.sleep(NOTICE_RETRY_SECONDS)
        self._dropped.handed_out -= delivery.queue == routing.UNROUTED_NOTICES
        delivery.requeue()

    async def _deal_with(self, delivery: Delivery) -> None:
        refusal = await self._refusal(delivery)
        answer = None if refusal is None else self._answer_to(delivery, refusal)
        if refusal is None or answer is None:
            self.ignored.value += 1
        else:
            await self._answer(delivery, refusal, *answer)
        if refusal is not None:
            self._tell(delivery, refusal)
        delivery.ack()

    async def _refusal(self, delivery: Delivery) -> Refusal | None:
        if delivery.queue == routing.DEAD_NOTICES:
            return given_up(delivery)
        if routing.is_results_queue(delivery.routing_key):
            return None  # an agent's report that its dispatcher could not read: no task
        return unrouted(delivery, await self._capabilities())

    def _answer_to(self, delivery: Delivery, refusal: Refusal) -> tuple[Message, Address] | None:
        """Return the answer for a refused task, and its shard's or publisher's address; None if no one is to get one.

        A workflow task without a queue is published again by its shard's orphan detector; it is no failure of the task.
        """
        message = delivery.message
        if (owned := owner_of(message)) is None:
            address = self._addresses.find(message.reply_to)
            return None if address is None else (refusal.answer(message), address)
        owner, publication = owned
        if delivery.queue != routing.DEAD_NOTICES or not owner.origin.isdecimal():
            return None
        answer = refusal.answer_to_owner(message, owner, publication, message_id=self._clock.new_id())
        return answer, Address(routing.RESULTS, owner.origin)

    async def _answer(self, delivery: Delivery, refusal: Refusal, answer: Message, address: Address) -> None:
        message = delivery.message
        key = _key(delivery)
        if delivery.redelivered and key in self._answered_keys:
            return
        try:
            if not self._addresses.reachable(address):
                raise SetupError("The broker's permissions do not allow it", entity=address.routing_key)
            await self._broker.publish(
                answer,
                exchange=address.exchange,
                routing_key=address.routing_key,
                timeout_seconds=NOTICE_ANSWER_SECONDS,
                wait_when_full=False,
            )
        except (Unroutable, NotFound, Overloaded, SetupError) as error:
            if isinstance(error, Overloaded) and self._broker.blocked:
                raise  # an alarm of the broker says nothing about the receiver
            self._addresses.refused(address, error)
            self.unclaimed.value += 1
            self._events.emit("task.unclaimed", subject=message.message_id or "", reply_to=message.reply_to)
            log.info("An answer has no receiver any more", extra=_facts(delivery, refusal) | {"error": str(error)})
        else:
            self.answered.value += 1
            self._remember(key)

    def _remember(self, key: bytes) -> None:
        self._answered_keys[key] = None
        if len(self._answered_keys) > MAX_REMEMBERED_NOTICES:
            self._answered_keys.popitem(last=False)

    def _tell(self, delivery: Delivery, refusal: Refusal) -> None:
        kind = "task.dead" if delivery.queue == routing.DEAD_NOTICES else "task.unrouted"
        self._events.emit(
            kind,
            subject=delivery.message.message_id or "",
            reason=refusal.failure.reason,
            routing_key=delivery.routing_key,
        )
        log.info("A task ended that no agent ran", extra=_facts(delivery, refusal))

    async def _capabilities(self) -> frozenset[str]:
        """Return the living agents' capabilities, at most 1 s old; empty while the registry does not answer."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now >= self._known_until:
                try:
                    self._known = await self._registry.capabilities()
                except RegistryUnavailable as error:
                    self._known = frozenset()
                    log.warning("The nearest names are unknown", extra={"reason": str(error)})
                self._known_until = now + OFFERED_NAMES_SECONDS
        return self._known


def _facts(delivery: Delivery, refusal: Refusal) -> dict[str, object]:
    return {
        "task_id": delivery.message.message_id,
        "capability": refusal.capability,
        "reason": refusal.failure.reason,
        "queue": delivery.queue,
    }


def _key(delivery: Delivery) -> bytes:
    """Return a hash of the queue, ids and body of an undeliverable task's copy, the same at each redelivery."""
    message = delivery.message
    named = (delivery.queue, delivery.routing_key, message.message_id, message.correlation_id, message.reply_to)
    return blake2b(repr(named).encode(errors="replace") + message.body, digest_size=16).digest()


# The reasons why no agent finished a task, read from the copy that the broker made of the task.
#
# A copy in ``unrouted.notices`` had no queue: unknown capability. One in ``dead.notices`` was given up, either by an
# agent, which answered its publisher itself, or by the broker (expired, delivery limit, overflow, rejected), which
# sends no answer. The broker's `x-death` tells them apart: an agent writes none.
#
# The publisher may be any program, so reading never raises.

NO_FENCE = 0
"""The fence in a result that is about a publication and not about one of its attempts."""
_LONGEST_NAME = 255
_MOST_ATTEMPTS = 10_000


@dataclass(frozen=True, slots=True)
class Refusal:
    """The result, rejected or failed, of a task that no queue took or the broker gave up, with the reason."""

    capability: str
    """The capability in the task's routing key, which may be no valid name."""
    status: Status
    failure: Failure
    attempt: int = 1

    def answer(self, message: Message) -> Message:
        """Return the result message that tells the task's publisher of the failure."""
        return tasks.result_message(self._outcome(message), capability=self.capability)

    def answer_to_owner(self, message: Message, owner: Owner, publication: int, *, message_id: str) -> Message:
        """Return the result message for the shard that owns the task's workflow.

        The broker gives up only messages that no consumer holds. So the publication failed, whichever attempt of it was
        granted last: the result names no fence.
        """
        result = tasks.OutcomeReport(
            replace(owner, fence=NO_FENCE), publication, self._outcome(message), self.capability
        )
        return tasks.outcome_report_message(result, message_id=message_id)

    def _outcome(self, message: Message) -> Outcome:
        return Outcome(
            status=self.status,
            body=dumps(self.failure.as_json()),
            task_id=message.message_id,
            correlation_id=message.correlation_id,
            attempt=self.attempt,
        )


def unrouted(delivery: Delivery, known: Iterable[str]) -> Refusal:
    """Return the rejection of a task whose capability has no queue; it suggests similar names that agents offer."""
    name, known = _name(delivery), frozenset(known)
    if name in known:
        message = f"Agents offer {name}, but no queue was bound to its key when the task came"
        fix = "publish it again; when that stays so: coditect topology apply"
        return Refusal(name, Status.REJECTED, Failure("unrouted", "Unroutable", message, retryable=True, fix=fix))
    try:
        check_capability_name(name)
    except InputError as error:
        message, fix = str(error), "publish with the key <capability>.<p0|p1|p2>, such as code.review.p1"
    else:
        message, fix = f"No agent offers {name}", "start an agent that declares it: coditect agent run FILE"
    nearest = nearest_names(name, known)
    if nearest:
        message = f"{message}; the nearest that agents offer: {', '.join(nearest)}"
    failure = Failure("unknown_capability", "UnknownCapability", message, fix=fix)
    return Refusal(name, Status.REJECTED, failure)


def given_up(delivery: Delivery) -> Refusal | None:
    """Return the failure of a task that the broker gave up or that is unreadable; None if an agent gave it up."""
    reason, headers = broker_reason(delivery.message), delivery.message.headers
    if reason is None and (tasks.UNDECODABLE not in headers or tasks.REASON in headers):
        return None
    letter = read_dead_letter(delivery)
    status, failure = _verdict(reason)
    return Refusal(_name(delivery), status, failure, attempt=min(max(1, letter.attempts), _MOST_ATTEMPTS))


def _verdict(reason: str | None) -> tuple[Status, Failure]:
    match reason:
        case "expired":
            message = "The task's expiration passed before an agent started it"
            return Status.REJECTED, Failure("expired", "TaskExpired", message, fix="give it more time, or add agents")
        case "delivery_limit":
            message = "The task came back unfinished too often: the agents that had it died or handed it back"
            fix = "find out why in the agents' logs, then bring it back: coditect dead redrive"
            return Status.FAILED, Failure("delivery_limit", "DeliveryLimitReached", message, fix=fix)
        case "maxlen":
            message = "The task's queue was full and dropped it"
            return Status.REJECTED, Failure("maxlen", "QueueFull", message, retryable=True, fix="add agents")
        case None:
            message, fix = "The message cannot be decoded", "see docs/wire.md for what a task may carry"
            return Status.REJECTED, Failure("invalid_task", "InvalidTask", message, fix=fix)
        case _:
            message = "The task was refused without a reason"
            return Status.REJECTED, Failure(reason, "TaskRejected", message, fix="see coditect dead get")


def _name(delivery: Delivery) -> str:
    try:
        name, _ = task_target(delivery.message.headers, delivery.routing_key)
    except InputError:
        name = delivery.routing_key
    return name[:_LONGEST_NAME]


# The count of undeliverable tasks that get no answer, because too many came and the broker dropped their copies.
#
# ``unrouted`` has every such task once. So the tasks that came to it, less the copies handed out of
# ``unrouted.notices`` and those waiting in it, were dropped. That holds while one dispatcher reads the copies, and no
# originals are removed: after any other change the count goes on from its last value. Copies dropped before the first
# look are not known.

DROPPED_CHECK_SECONDS = 15.0
"""The pause between two counts of dropped copies, each of which costs two calls to the broker."""


class Dropped:
    """The counter of undeliverable tasks whose copy the broker dropped before the dispatcher could read it."""

    def __init__(self, broker: Broker, counter: Counter) -> None:
        self._broker = broker
        self._counter = counter
        self.handed_out = 0
        """The number of copies that the broker delivered to this dispatcher and that were not requeued."""
        self._kept = 0
        self._base: int | None = None
        self._balance: int | None = None

    async def run(self) -> None:
        """Count the undeliverable tasks' copies that the broker dropped, every 15 s, until canceled."""
        while True:
            try:
                await self._look()
            except CoditectError:  # copies in hand come again: nothing that was handed out counts any more
                self._base = None
            await asyncio.sleep(DROPPED_CHECK_SECONDS)

    async def _look(self) -> None:
        copies = await self._broker.stats(routing.UNROUTED_NOTICES)
        originals = await self._broker.stats(routing.UNROUTED_QUEUE)
        if copies is None or originals is None:
            self._base = None
            return
        dropped, before = 0, self._balance
        self._balance = originals.messages - self.handed_out - copies.messages
        if self._base is None or copies.consumers != 1 or originals.messages < self._kept:
            self._base = self._balance - self._counter.value
        elif copies.messages == 0 and self._balance == before:
            dropped = self._balance - self._base
        self._kept = originals.messages
        if dropped > self._counter.value:
            facts = {"dropped": dropped - self._counter.value, "queue": routing.UNROUTED_QUEUE}
            log.warning("Tasks that no agent takes came too fast: some of their publishers get no answer", extra=facts)
            self._counter.value = dropped
