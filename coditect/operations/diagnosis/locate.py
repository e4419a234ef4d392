"""The search for one task, at the agents and in the queues, whose messages stay there.

Direct tasks have no record, so the search has blind spots: `locations.UNSEEN` names them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from coditect.broker.port import Broker, Delivery
from coditect.errors import BrokerUnavailable, InputError, NotFound
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.retry import RETRY_DELAYS_MS
from coditect.operations.dead_letters.letter import history_of, read_dead_letter
from coditect.operations.diagnosis.locations import Found, TaskLocation, TaskPlace, TaskStory
from coditect.operations.diagnosis.question import ask_agents
from coditect.wire import control_messages, routing, tasks
from coditect.wire.addresses.target import task_target

MOST_BYTES = 16 * 1024 * 1024
"""The most bytes of message bodies in memory at once while a queue is searched, exceeded by one body at most."""


class TaskLocator:
    """The search for a task in the queues and at the agents of one broker, over a connection that nothing else uses."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def find(self, task_id: str, *, waiting: Iterable[str], dead: Iterable[str], most: int) -> Found:
        """Ask every agent whether it runs the task, and search the first `most` messages of each queue.

        `waiting` names the capabilities whose task queues are searched, `dead` those whose dead letters are. The search
        fetches each message for a moment and gives it back to its old place; the broker counts that as a delivery, so
        each message comes back marked as redelivered.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
            Overloaded: when the broker takes no question to the agents; retryable. So is PublishUnconfirmed, without a
                word from the broker whether it took the question.
        """
        locations, asked = await self._ask(task_id)
        looked, cut = [], []
        for queue in _queues(tuple(waiting), dead):
            stats = await self._broker.stats(queue)
            if stats is None:
                continue
            looked.append(queue)
            seen, whole = await self._look(queue, task_id, most)
            locations += seen
            if not (seen or whole):
                cut.append(queue)
        return Found(tuple(locations), tuple(looked), tuple(cut), asked)

    async def _look(self, queue: str, task_id: str, most: int) -> tuple[list[TaskLocation], bool]:
        """Search a queue's first `most` messages for a task; return where it was found, or whether these were all."""
        size = 0
        try:
            for before in range(most):
                delivery = await self._broker.get(queue)
                if delivery is None:
                    return [], True
                if delivery.message.message_id == task_id:
                    return [_location(delivery, before)], False
                size += len(delivery.message.body)
                if size > MOST_BYTES:
                    return [], False
            return [], await self._broker.get(queue) is None
        except NotFound:
            return [], True
        finally:
            with suppress(BrokerUnavailable):  # without a connection the broker has it all already
                await self._broker.release()

    async def _ask(self, task_id: str) -> tuple[list[TaskLocation], int]:
        """Ask every agent whether it runs the task; return the agents that do, and how many agents answered.

        The wait ends with the first agent that has the task, or after ANSWER_SECONDS.

        Raises:
            Retryable: any error that `find` names.
        """
        ping = control_messages.ping(task_id=task_id, reply_to="")
        answers = await ask_agents(self._broker, ping, enough=lambda answers: any(map(_has_it, answers)))
        return [_working(answer) for answer in answers if _has_it(answer)], len(answers)


def _queues(waiting: Collection[str], dead: Iterable[str]) -> Sequence[str]:
    names = [routing.task_queue(name, level) for name in waiting for level in Priority]
    names += [routing.retry_back_queue(name) for name in waiting]
    names += [routing.retry_queue(delay_ms) for delay_ms in RETRY_DELAYS_MS]
    return [*names, *(routing.dead_queue(name) for name in sorted(set(dead))), routing.UNROUTED_QUEUE]


def _location(delivery: Delivery, before: int) -> TaskLocation:
    queue = delivery.queue
    try:
        capability, priority = task_target(delivery.message.headers, delivery.routing_key)
    except InputError:
        capability, priority = None, None
    if queue == routing.UNROUTED_QUEUE:
        place = TaskPlace.UNROUTED
    elif queue.startswith("retry."):
        place = TaskPlace.RETRYING
    else:
        place = TaskPlace.WAITING if routing.queue_key(queue) is not None else TaskPlace.DEAD
    letter = read_dead_letter(delivery)
    reason = letter.reason if place is TaskPlace.DEAD else ""
    published = delivery.message.headers.get(tasks.PUBLISHED_AT)
    published_ms = published if isinstance(published, int) else None
    story = TaskStory(history_of(letter), letter.redrives, published_ms, letter.dead_at_ms)
    return TaskLocation(place, capability, priority, queue=queue, before=before, reason=reason, story=story)


def _has_it(answer: object) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("task"), dict)


def _working(answer: object) -> TaskLocation:
    values = answer if isinstance(answer, dict) else {}
    capability, level, key = (values["task"].get(name) for name in ("capability", "priority", "key"))
    return TaskLocation(
        TaskPlace.WORKING,
        capability if isinstance(capability, str) else None,
        Priority(level) if level in tuple(Priority) else None,
        agent_id=AgentId(str(values.get("agent_id", ""))),
        key=key if isinstance(key, str) else "",
    )
