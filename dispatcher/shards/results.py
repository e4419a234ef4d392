"""Arrivals: what agents tell is read and laid on the shard's worker; the ack follows the commit."""

from __future__ import annotations

import logging
from typing import Any

from coditect.broker.port import Delivery
from coditect.errors import CoditectError, InputError
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import Owner
from coditect.model.value import value
from coditect.wire.control import PROGRESS_TYPE, STARTED_TYPE, read_progress, read_started
from coditect.wire.json import dumps, loads
from coditect.wire.owned_results import RESULTS_TYPE, read_owners, read_results
from coditect.wire.tasks import RESULT_TYPE, OwnedResult, owner_of, read_owned_result
from dispatcher.ledger.commands import Began, Finished
from dispatcher.ledger.effects import NodeKey
from dispatcher.shards.completions import NOTHING
from dispatcher.shards.worker import ShardWorker

log = logging.getLogger(__name__)

MOST_REASON = 2_000


class ResultsConsumer:
    """Takes deliveries of one shard's results queue."""

    def __init__(self, worker: ShardWorker) -> None:
        self._worker = worker

    def take(self, delivery: Delivery) -> None:
        """A result, starts, signs of life. What cannot be read becomes a dead letter: nothing behind it is held up."""
        message = delivery.message
        try:
            if message.type == STARTED_TYPE:
                self._take_starts(delivery)
            elif message.type == PROGRESS_TYPE:
                for progress in read_progress(message):
                    self._worker.hear(progress)
                delivery.ack()  # the next one says more
            elif message.type == RESULT_TYPE:
                self._worker.put(read_finished(message), Acked(delivery), size_bytes=len(message.body))
            elif message.type == RESULTS_TYPE:
                self._take_results(delivery)
            else:
                log.debug("A message of another kind is let go", extra={"type": message.type})
                delivery.ack()
        except InputError as error:
            log.error("A result cannot be read; it is a dead letter", extra={"reason": str(error)})
            self._refuse(delivery, error)

    def _take_results(self, delivery: Delivery) -> None:
        """Each is recorded, or refused, by itself; the delivery goes when all are."""
        results = read_results(delivery.message, str(self._worker.shard))
        if not results:
            delivery.ack()
        settle = AckedTogether(delivery, len(results))
        for told in results:
            self._worker.put(finished(told), settle, size_bytes=len(told.outcome.body))

    def _refuse(self, delivery: Delivery, error: InputError) -> None:
        """The attempts that it is about have failed, as far as it says which."""
        owners = [owned for owned in self._owners(delivery.message) if owned[0].fence]
        if not owners:
            delivery.reject()
        settle = AckedTogether(delivery, len(owners), refused=True)
        for owner, publication in owners:
            self._worker.put(_unread(owner, publication, error), settle)

    def _owners(self, message: Message) -> list[tuple[Owner, int]]:
        if message.type == RESULTS_TYPE:
            return read_owners(message, str(self._worker.shard))
        owned = owner_of(message) if message.type == RESULT_TYPE else None
        return [] if owned is None else [owned]

    def _take_starts(self, delivery: Delivery) -> None:
        """The shard worker keeps their order: when the last one is recorded, all are."""
        began = [Began(started) for started in read_started(delivery.message)]
        if not began:
            delivery.ack()
        for command in began:
            self._worker.put(command, Acked(delivery) if command is began[-1] else NOTHING)


def read_finished(message: Message) -> Finished:
    """How an attempt of an owned task ended. Raises: InvalidTask."""
    told = read_owned_result(message)
    loads(message.body)
    return finished(told)


def finished(told: OwnedResult) -> Finished:
    """What an agent told, as a command."""
    node_key = NodeKey(told.owner.workflow, told.owner.node)
    return Finished(node_key, told.owner.fence, told.publication, told.outcome, told.retry_ms, told.free)


def _unread(owner: Owner, publication: int, error: InputError) -> Finished:
    """The attempt whose result this would have been failed."""
    fix = "look at the message in the queue `unrouted`"
    failure = Failure("unreadable_result", type(error).__name__, str(error)[:MOST_REASON], retryable=True, fix=fix)
    outcome = Outcome(Status.FAILED, dumps(failure.as_json()), None, None, failure=failure)
    return Finished(NodeKey(owner.workflow, owner.node), owner.fence, publication, outcome)


@value
class Acked:
    """The delivery is acked when the ledger has it; one that the ledger cannot take is a dead letter."""

    delivery: Delivery

    def done(self, answer: Any) -> None:
        """It is recorded, or refused for good."""
        if isinstance(answer, CoditectError):
            self.delivery.reject()
        else:
            self.delivery.ack()

    def undone(self) -> None:
        """The next owner takes it."""
        self.delivery.requeue()


class AckedTogether:
    """One delivery of several results: `Acked` when the last of them is settled.

    One that is `refused` is a dead letter in any case, for people to look at, once the ledger knows what it told.
    """

    def __init__(self, delivery: Delivery, results: int, *, refused: bool = False) -> None:
        self._delivery = delivery
        self._left = results
        self._refused = refused
        self._undone = False

    def done(self, answer: Any) -> None:
        """One is recorded, or refused for good."""
        self._refused = self._refused or isinstance(answer, CoditectError)
        self._settle()

    def undone(self) -> None:
        """One is for the next owner, and the others are nothing new to it."""
        self._undone = True
        self._settle()

    def _settle(self) -> None:
        self._left -= 1
        if self._left:
            return
        if self._undone:
            self._delivery.requeue()
        elif self._refused:
            self._delivery.reject()
        else:
            self._delivery.ack()
