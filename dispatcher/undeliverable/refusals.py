"""The reasons why no agent finished a task, read from the copy that the broker made of the task.

A copy in ``unrouted.notices`` had no queue: unknown capability. One in ``dead.notices`` was given up, either by an
agent, which answered its publisher itself, or by the broker (expired, delivery limit, overflow, rejected), which sends
no answer. The broker's `x-death` tells them apart: an agent writes none.

The publisher may be any program, so reading never raises.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from coditect.broker.port import Delivery
from coditect.errors import InputError
from coditect.model.capability import check_capability_name, nearest_names
from coditect.model.message import Message
from coditect.model.result import Failure, Outcome, Status
from coditect.model.task import Owner
from coditect.operations.dead_letters.letter import broker_reason, read_dead_letter
from coditect.wire import tasks
from coditect.wire.addresses.target import task_target
from coditect.wire.json import dumps

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
        told = tasks.AttemptResult(replace(owner, fence=NO_FENCE), publication, self._outcome(message), self.capability)
        return tasks.attempt_result_message(told, message_id=message_id)

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
            return Status.REJECTED, Failure(reason, "TaskRejected", message, fix="see coditect dead show")


def _name(delivery: Delivery) -> str:
    try:
        name, _ = task_target(delivery.message.headers, delivery.routing_key)
    except InputError:
        name = delivery.routing_key
    return name[:_LONGEST_NAME]
