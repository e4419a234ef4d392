"""Arrivals: what agents tell is read and laid on the shard's desk; the ack follows the commit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from coditect.broker.port import Delivery
from coditect.errors import CoditectError, InputError
from coditect.model.control import PROGRESS_TYPE, STARTED_TYPE, read_progress, read_started
from coditect.model.json import loads
from coditect.model.message import Message
from coditect.model.wire import FENCE, NODE, PUBLICATION, RESULT_TYPE, WORKFLOW, read_result
from dispatcher.commands import Began, Finished
from dispatcher.desk import Desk
from dispatcher.layers.ledger.effects import Place
from dispatcher.settling import NOTHING

log = logging.getLogger(__name__)


class Arrivals:
    """Takes deliveries of one shard's results queue."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def take(self, delivery: Delivery) -> None:
        """A result, starts, signs of life. What cannot be read becomes a dead letter: nothing behind it is held up."""
        message = delivery.message
        try:
            if message.type == STARTED_TYPE:
                for started in read_started(message):
                    self._desk.put(Began(started), NOTHING)
                delivery.ack()  # a start is told again by the agent's claim, or made good by its result
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
            delivery.reject()


def read_finished(message: Message) -> Finished:
    """How an attempt of an owned task ended. Raises: InvalidTask."""
    headers = message.headers
    outcome = read_result(message)
    place = Place(str(headers.get(WORKFLOW, "")), str(headers.get(NODE, "")))
    fence, publication = headers.get(FENCE, 0), headers.get(PUBLICATION, 0)
    loads(message.body)
    return Finished(place, int(fence), int(publication), outcome)


@dataclass(frozen=True, slots=True)
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
