"""The consumer of agents' reports to a shard: each becomes a command to the worker, acked after the commit."""

from __future__ import annotations

import logging
from typing import Any

from coditect.broker.port import Delivery
from coditect.errors import CoditectError, InputError, InvalidTask
from coditect.model.message import Message
from coditect.model.task import Owner
from coditect.wire.control import PROGRESS_TYPE, STARTED_TYPE, read_progress, read_started
from coditect.wire.json import loads
from coditect.wire.tasks import RESULT_TYPE, OutcomeReport, owner_of, read_outcome_report
from coditect.wire.workflow_tasks import RESULTS_TYPE, read_owners, read_results
from dispatcher.ledger.commands import Began, Finished, unreported
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.nodes.attempts import UNREADABLE
from dispatcher.shards.completions import Settle, Undone, ignore
from dispatcher.shards.worker import ShardWorker

log = logging.getLogger(__name__)

NEWER_REPORT_FIX = "upgrade the dispatchers before the agents"
_HINTS = tuple(kind.removesuffix("v1") for kind in (STARTED_TYPE, PROGRESS_TYPE))
"""The types of reports, without their versions, that only say how far work is."""
_ONE_RESULT = RESULT_TYPE.removesuffix("v1")


class ResultsConsumer:
    """The consumer of one shard's results queue, in which agents' reports arrive."""

    def __init__(self, worker: ShardWorker) -> None:
        self._worker = worker

    def take(self, delivery: Delivery) -> None:
        """Handle an agent's message of results, starts or heartbeats; an unreadable one becomes a dead letter.

        The attempts whose results an unreadable message brings are recorded as failed.
        """
        message = delivery.message
        try:
            if message.type == STARTED_TYPE:
                self._take_starts(delivery)
            elif message.type == PROGRESS_TYPE:
                for progress in read_progress(message):
                    self._worker.hear(progress)
                delivery.ack()  # the next one says more
            elif message.type == RESULT_TYPE:
                self._worker.put(read_finished(message), acked_after(delivery, 1), size_bytes=len(message.body))
            elif message.type == RESULTS_TYPE:
                self._take_results(delivery)
            elif message.type is not None and message.type.startswith(_HINTS):
                log.debug("A report of a newer release is not used", extra={"type": message.type})
                delivery.ack()
            else:
                raise InvalidTask(
                    "The dispatcher knows no report of this type", type=str(message.type)[:120], fix=NEWER_REPORT_FIX
                )
        except InputError as error:
            log.error("A report cannot be read; it is a dead letter", extra={"reason": str(error)})
            self._refuse(delivery, error)

    def _take_results(self, delivery: Delivery) -> None:
        """Give each result of a delivery to the shard worker; the delivery is settled after the last one."""
        results = read_results(delivery.message, str(self._worker.shard))
        if not results:
            delivery.ack()
        settle = acked_after(delivery, len(results))
        for result in results:
            self._worker.put(finished(result), settle, size_bytes=len(result.outcome.body))

    def _refuse(self, delivery: Delivery, error: InputError) -> None:
        """Record a failure of each attempt that an unreadable message names, and make the message a dead letter."""
        owners = [owned for owned in self._owners(delivery.message) if owned[0].fence]
        if not owners:
            delivery.reject()
        settle = acked_after(delivery, len(owners), refused=True)
        for owner, publication in owners:
            self._worker.put(_unread(owner, publication, error), settle)

    def _owners(self, message: Message) -> list[tuple[Owner, int]]:
        if message.type == RESULTS_TYPE:
            return read_owners(message, str(self._worker.shard))
        owned = owner_of(message) if str(message.type).startswith(_ONE_RESULT) else None
        return [] if owned is None else [owned]

    def _take_starts(self, delivery: Delivery) -> None:
        """Give an agent's start reports to the shard worker in order; the delivery is settled after the last one."""
        began = [Began(started) for started in read_started(delivery.message)]
        if not began:
            delivery.ack()
        for command in began:
            self._worker.put(command, acked_after(delivery, 1) if command is began[-1] else ignore)


def read_finished(message: Message) -> Finished:
    """Parse an agent's message with one result, and return the command that records the result in the ledger.

    Raises:
        InvalidTask: when the message cannot be read.
    """
    result = read_outcome_report(message)
    loads(message.body)
    return finished(result)


def finished(result: OutcomeReport) -> Finished:
    """Return the command to the shard worker that records an agent's result of an attempt in the ledger."""
    node_key = NodeKey(result.owner.workflow, result.owner.node)
    return Finished(node_key, result.owner.fence, result.publication, result.outcome, result.free)


def _unread(owner: Owner, publication: int, error: InputError) -> Finished:
    """Return the command that records an attempt as failed (retryable), because its result cannot be read."""
    node_key = NodeKey(owner.workflow, owner.node)
    return Finished(node_key, owner.fence, publication, unreported(UNREADABLE, error), reported=False)


def acked_after(delivery: Delivery, reports: int, *, refused: bool = False) -> Settle:
    """Return the function to call with the answer to each report of a delivery, which settles it after the last one.

    It acks the delivery if the ledger has recorded all reports, and returns it to its queue for the shard's next owner
    if one was left undone. Else it rejects the delivery, as it does in any case if the delivery is `refused`: a dead
    letter, for a person to look at.
    """
    answers: list[Any] = []

    def settle(answer: Any) -> None:
        answers.append(answer)
        if len(answers) < reports:
            return
        if any(isinstance(each, Undone) for each in answers):
            delivery.requeue()
        elif refused or any(isinstance(each, CoditectError) for each in answers):
            delivery.reject()
        else:
            delivery.ack()

    return settle
