"""Arrivals: what agents tell is read and laid on the shard's desk; the ack follows the commit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from coditect.broker.port import Delivery
from coditect.errors import CoditectError, InputError
from coditect.model.control import PROGRESS_TYPE, STARTED_TYPE, read_progress, read_started
from coditect.model.json import dumps, loads
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.model.value import value
from coditect.model.wire import RESULT_TYPE, owner_of, read_owned_result
from dispatcher.commands import Began, Finished
from dispatcher.desk import Desk
from dispatcher.layers.ledger.effects import Place
from dispatcher.settling import NOTHING

log = logging.getLogger(__name__)

MOST_REASON = 2_000


class Arrivals:
    """Takes deliveries of one shard's results queue."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def take(self, delivery: Delivery) -> None:
        """A result, starts, signs of life. What cannot be read becomes a dead letter: nothing behind it is held up."""
        message = delivery.message
        try:
            if message.type == STARTED_TYPE:
                self._take_starts(delivery)
            elif message.type == PROGRESS_TYPE:
                for progress in read_progress(message):
                    self._desk.hear(progress)
                delivery.ack()  # the next one says more
            elif message.type == RESULT_TYPE:
                if self._desk.acks_early:
                    delivery.ack()
                self._desk.put(read_finished(message), Acked(delivery), size_bytes=len(message.body))
            else:
                log.debug("A message of another kind is let go", extra={"type": message.type})
                delivery.ack()
        except InputError as error:
            log.error("A result cannot be read; it is a dead letter", extra={"reason": str(error)})
            if message.type == RESULT_TYPE and (unread := unreadable(message, error)) is not None:
                self._desk.put(unread, Rejected(delivery))
            else:
                delivery.reject()

    def _take_starts(self, delivery: Delivery) -> None:
        """The desk keeps their order: when the last one is recorded, all are."""
        began = [Began(started) for started in read_started(delivery.message)]
        if not began:
            delivery.ack()
        for command in began:
            self._desk.put(command, Acked(delivery) if command is began[-1] else NOTHING)


def read_finished(message: Message) -> Finished:
    """How an attempt of an owned task ended. Raises: InvalidTask."""
    told = read_owned_result(message)
    loads(message.body)
    place = Place(told.owner.workflow, told.owner.node)
    return Finished(place, told.owner.fence, told.publication, told.outcome, told.retry_ms, told.free)


def unreadable(message: Message, error: InputError) -> Finished | None:
    """The attempt whose result this would have been failed; None when the message does not even say whose."""
    owned = owner_of(message)
    if owned is None or not owned[0].fence:
        return None
    owner, publication = owned
    fix = "look at the message in the queue `unrouted`"
    failure = Failure("unreadable_result", type(error).__name__, str(error)[:MOST_REASON], retryable=True, fix=fix)
    outcome = Outcome(Status.FAILED, dumps(failure.as_json()), None, None, failure=failure)
    return Finished(Place(owner.workflow, owner.node), owner.fence, publication, outcome)


@dataclass(frozen=True, slots=True)
class Rejected:
    """The delivery is a dead letter, for people to look at, once the ledger knows that it told nothing."""

    delivery: Delivery

    def done(self, answer: Any) -> None:
        """It does."""
        self.delivery.reject()

    def undone(self) -> None:
        """The next owner takes it."""
        self.delivery.requeue()


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
