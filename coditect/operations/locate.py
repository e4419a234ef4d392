"""Where a task is, and why no agent takes it: by the answers of agents, the queues' messages, and the registry.

Direct tasks have no record, so the search has blind spots: `UNSEEN` names them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from secrets import token_hex
from typing import Any, TypeAlias

from coditect.broker.port import Broker, Delivery
from coditect.broker.topology import reply_queue
from coditect.errors import BrokerUnavailable, InputError, InvalidTask, NotFound, RegistryUnavailable, Unroutable
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.message import Message
from coditect.model.registration import AgentRecord
from coditect.model.retry import RETRY_DELAYS_MS
from coditect.operations.connections import Connections
from coditect.operations.explain import Explanation, QueueSeen, TakeVerdict, TaskQuestion, explain
from coditect.operations.fleet import find_agents
from coditect.operations.letter import history_of, read_dead_letter
from coditect.registry.port import Search
from coditect.wire import control_messages, routing, tasks
from coditect.wire.json import loads
from coditect.wire.routing import Address, task_target

PING_ANSWER_SECONDS = 1.0
"""How long the agents may take to answer."""
PING_PUBLISH_SECONDS = 10.0

EVERY_AGENT = Address(routing.BROADCAST, "")

PingReply: TypeAlias = Mapping[str, Any]
"""The content of an agent's answer: its id and load, and what the question asked for."""


async def ask_agents(
    broker: Broker,
    question: Message,
    *,
    enough: Callable[[list[PingReply]], bool],
    to: Address = EVERY_AGENT,
    within_seconds: float | None = None,
) -> list[PingReply]:
    """Send a question to every agent; return the answers when `enough(answers)` is true, or time is up.

    `to` is the address of one agent's mailbox in place of all. Without `within_seconds`, the agents have one second.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
        Overloaded: when the broker takes no question to the agents; retryable. So is PublishUnconfirmed, without a
            word from the broker whether it took the question.
    """
    name, token = f"reply.question-{token_hex(6)}", token_hex(16)
    answers: list[PingReply] = []
    heard = asyncio.Event()

    def answered(delivery: Delivery) -> None:
        with suppress(InvalidTask):
            content = loads(delivery.message.body) if delivery.message.correlation_id == token else None
            if isinstance(content, dict):
                answers.append(content)
        delivery.ack()
        if enough(answers):
            heard.set()

    async with AsyncExitStack() as stack:
        stack.push_async_callback(broker.delete_queue, name)
        try:
            await broker.declare(reply_queue(name))
        except NotFound:  # no agent and no client ever was at this broker
            return []
        consumer = await broker.consume(name, answered, prefetch=1_000, group="replies")
        stack.push_async_callback(consumer.cancel)
        with suppress(NotFound, Unroutable, TimeoutError):  # no agent is there, or some are silent
            await broker.publish(
                replace(question, reply_to=name, correlation_id=token),
                exchange=to.exchange,
                routing_key=to.routing_key,
                timeout_seconds=PING_PUBLISH_SECONDS,
            )
            async with asyncio.timeout(PING_ANSWER_SECONDS if within_seconds is None else within_seconds):
                await heard.wait()
    return answers


UNSEEN = (
    "it ended: only who submitted it learns how, and a task that completed leaves nothing behind",
    "it is in an agent's inbox or on its way to a slot, for at most a second or so",
    "it is with a consumer that is no agent of this fleet, or with an agent that did not answer",
)
"""Sentences about where a task can be although the search did not find it, since direct tasks have no record."""
UNSEEN_IN_ITS_QUEUE = "it waits in its capability's queue: name it with --capability to look there"


class TaskPlace(StrEnum):
    """A kind of place where a task can be, listed from the most telling (at an agent) to the least (unrouted)."""

    WORKING = "working"
    WAITING = "waiting"
    RETRYING = "retrying"
    DEAD = "dead"
    UNROUTED = "unrouted"


@dataclass(frozen=True, slots=True)
class TaskStory:
    """The past of a task, read from its message: failed attempts, redrives, and when it was published and given up."""

    errors: tuple[Mapping[str, object], ...] = ()
    """The failed attempts, oldest first, as `wire.headers.history` has them."""
    redrives: int = 0
    published_at_ms: int | None = None
    dead_at_ms: int | None = None


UNTOLD = TaskStory()
"""The story of a task whose message was not seen, since an agent has it."""


@dataclass(frozen=True, slots=True)
class TaskLocation:
    """A place where a task was found: an agent or a queue, with the position in the queue."""

    place: TaskPlace
    capability: str | None
    priority: Priority | None
    queue: str | None = None
    agent_id: AgentId | None = None
    before: int = 0
    """The number of messages ahead of the task in the queue."""
    reason: str = ""
    """The reason why the task was given up, of a dead letter."""
    story: TaskStory = UNTOLD
    key: str = ""
    """The key for whose lock the task waits at its agent, as `coditect lock list` names it; empty when it runs."""


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search for a task: where it was found, and where the search looked."""

    locations: tuple[TaskLocation, ...]
    """The places where the task was found."""
    looked: tuple[str, ...]
    """The queues that were searched."""
    cut: tuple[str, ...]
    """The queues that hold more messages than the search looked at."""
    asked: int
    """The number of agents that answered whether they run the task."""

    @property
    def best(self) -> TaskLocation | None:
        """The most telling place where the task was found, an agent before a queue; None if it was not found.

        There may be two places after a redrive or an agent's death.
        """
        order = list(TaskPlace)
        return min(self.locations, key=lambda one: order.index(one.place), default=None)


def unseen(found: Found, *, named: bool) -> tuple[str, ...]:
    """Return sentences on where a task that was not found may still be: the places that the search did not see."""
    further = tuple(f"it lies further back in {queue} than was looked: --limit" for queue in found.cut)
    return (*(() if named else (UNSEEN_IN_ITS_QUEUE,)), *further, *UNSEEN)


def task_verdict(task_id: str, found: Found, explanation: Explanation | None, *, named: bool) -> TakeVerdict:
    """Return a sentence that says where one task is, or that it was not found, together with a fix."""
    seen = found.best
    if seen is None:
        fix = "see where it can be; ask who submitted it" if named else "name its capability with --capability"
        return TakeVerdict(f"{task_id} was not found", fix, known=False)
    match seen.place:
        case TaskPlace.WORKING:
            return _works(seen)
        case TaskPlace.WAITING:
            return _waits(seen, explanation)
        case TaskPlace.RETRYING:
            return TakeVerdict(f"An attempt failed; it waits in {seen.queue} for the next one", "wait")
        case TaskPlace.DEAD:
            about = f"coditect dead get {task_id} --capability {seen.capability}"
            again = f"coditect dead redrive --id {task_id} --capability {seen.capability}"
            return TakeVerdict(f"It was given up: {seen.reason}", f"{about}; once mended: {again}")
        case TaskPlace.UNROUTED:
            return TakeVerdict(
                f"No agent offered {seen.capability} when it was published; it was put aside",
                f"start an agent that declares it, then: coditect dead redrive --id {task_id}",
            )


def _works(seen: TaskLocation) -> TakeVerdict:
    if not seen.key:
        return TakeVerdict(f"{seen.agent_id} works on it", takes=True)
    fix = f"wait until those before it have ended: coditect lock list '{seen.key}'"
    return TakeVerdict(f"{seen.agent_id} has it; it waits for its key {seen.key}, which others hold", fix)


def _waits(seen: TaskLocation, explanation: Explanation | None) -> TakeVerdict:
    where = f"It waits in {seen.queue}, {seen.before} before it"
    if explanation is None:
        return TakeVerdict(where)
    rest = explanation.verdict
    return TakeVerdict(f"{where}. {rest.sentence}", rest.fix, takes=rest.takes)


SEARCHED_BYTES_LIMIT = 16 * 1024 * 1024
"""The most bytes of message bodies in memory at once while a queue is searched, exceeded by one body at most."""


async def locate_task(broker: Broker, task_id: str, *, waiting: Iterable[str], dead: Iterable[str], most: int) -> Found:
    """Ask every agent whether it runs the task, and search the first `most` messages of each queue.

    `waiting` names the capabilities whose task queues are searched, `dead` those whose dead letters are. The search
    fetches each message for a moment and gives it back to its old place; the broker counts that as a delivery, so
    each message comes back marked as redelivered. The connection must be the caller's alone while the call runs.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
        Overloaded: when the broker takes no question to the agents; retryable. So is PublishUnconfirmed, without a
            word from the broker whether it took the question.
    """
    locations, asked = await _ask(broker, task_id)
    looked, cut = [], []
    for queue in _queues(tuple(waiting), dead):
        stats = await broker.stats(queue)
        if stats is None:
            continue
        looked.append(queue)
        seen, whole = await _look(broker, queue, task_id, most)
        locations += seen
        if not (seen or whole):
            cut.append(queue)
    return Found(tuple(locations), tuple(looked), tuple(cut), asked)


async def _look(broker: Broker, queue: str, task_id: str, most: int) -> tuple[list[TaskLocation], bool]:
    """Search a queue's first `most` messages for a task; return where it was found, or whether these were all."""
    size = 0
    try:
        for before in range(most):
            delivery = await broker.get(queue)
            if delivery is None:
                return [], True
            if delivery.message.message_id == task_id:
                return [_location(delivery, before)], False
            size += len(delivery.message.body)
            if size > SEARCHED_BYTES_LIMIT:
                return [], False
        return [], await broker.get(queue) is None
    except NotFound:
        return [], True
    finally:
        with suppress(BrokerUnavailable):  # without a connection the broker has it all already
            await broker.release()


async def _ask(broker: Broker, task_id: str) -> tuple[list[TaskLocation], int]:
    """Ask every agent whether it runs the task; return the agents that do, and how many agents answered.

    The wait ends with the first agent that has the task, or after PING_ANSWER_SECONDS.

    Raises:
        Retryable: any error that `locate_task` names.
    """
    ping = control_messages.ping(task_id=task_id, reply_to="")
    answers = await ask_agents(broker, ping, enough=lambda answers: any(map(_has_it, answers)))
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


def _has_it(answer: PingReply) -> bool:
    return isinstance(answer.get("task"), dict)


def _working(answer: PingReply) -> TaskLocation:
    capability, level, key = (answer["task"].get(name) for name in ("capability", "priority", "key"))
    return TaskLocation(
        TaskPlace.WORKING,
        capability if isinstance(capability, str) else None,
        Priority(level) if level in tuple(Priority) else None,
        agent_id=AgentId(str(answer.get("agent_id", ""))),
        key=key if isinstance(key, str) else "",
    )


# Use cases that say why no agent takes a task, from the registry, the broker and the agents.
#
# Every function raises BrokerUnavailable, and the other retryable errors of `locate_task`, when the broker does
# not answer, and goes on without the registry.

DEFAULT_MOST = 1_000
"""The number of messages that a search looks at in each queue by default."""
LOOK_AGAIN_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class WhyNot:
    """The answer why no agent takes a task: the verdict, the explanation, and where the task was found."""

    verdict: TakeVerdict
    explanation: Explanation | None
    """The diagnosis of each agent; None when the capability is unknown."""
    task_id: str | None = None
    """The id of the task asked about; None, like `found`, when the question was about a capability."""
    found: Found | None = None
    unseen: tuple[str, ...] = ()
    """Sentences about where the task can be although the search did not find it."""


async def why_not_capability(opened: Connections, question: TaskQuestion) -> WhyNot:
    """Say for each agent whether it would take a task of a capability now, and else why not; read-only."""
    fleet = await _fleet(opened)
    async with opened.broker() as broker:
        explanation = await _explained(broker, question, fleet)
    return WhyNot(explanation.verdict, explanation)


async def why_not_task(opened: Connections, task_id: str, given: TaskQuestion | None, *, most: int) -> WhyNot:
    """Say where a direct task is and, if its capability is known, for each agent whether it would take the task.

    The search is that of `locate_task`: it fetches at most `most` messages of each queue and gives them back. With
    `given` the task queues of its capability are searched, too.
    """
    fleet = await _fleet(opened)
    named = () if given is None else (given.capability,)
    async with opened.broker() as broker:
        found = await locate_task(broker, task_id, waiting=named, dead=_offered(fleet).union(named), most=most)
        question = _question_of(found.best, given)
        explanation = None if question is None else await _explained(broker, question, fleet)
    verdict = task_verdict(task_id, found, explanation, named=given is not None)
    perhaps = () if found.locations else unseen(found, named=given is not None)
    return WhyNot(verdict, explanation, task_id, found, perhaps)


async def find_task(opened: Connections, task_id: str, *, capability: str | None = None) -> Found:
    """Search for a direct task at the agents, and in the queues of their capabilities and of a named capability.

    Looks a second time after LOOK_AGAIN_SECONDS: a task on its way to a slot is nowhere for a moment.
    """
    offered = _offered(await _fleet(opened)) | ({capability} if capability else set())
    async with opened.broker() as broker:
        found = await locate_task(broker, task_id, waiting=sorted(offered), dead=offered, most=DEFAULT_MOST)
        if not found.locations:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            found = await locate_task(broker, task_id, waiting=sorted(offered), dead=offered, most=DEFAULT_MOST)
    return found


async def _fleet(opened: Connections) -> tuple[AgentRecord, ...] | None:
    try:
        return await find_agents(opened, Search())
    except RegistryUnavailable:
        return None


def _offered(fleet: Sequence[AgentRecord] | None) -> set[str]:
    return {offer.name for record in fleet or () for offer in record.registration.capabilities}


async def _explained(broker: Broker, question: TaskQuestion, fleet: Sequence[AgentRecord] | None) -> Explanation:
    queues = []
    for level in Priority:
        name = routing.task_queue(question.capability, level)
        stats = await broker.stats(name)
        counts = (0, 0) if stats is None else (stats.messages, stats.consumers)
        queues.append(QueueSeen(name, stats is not None, *counts))
    return explain(question, fleet, queues)


def _question_of(seen: TaskLocation | None, given: TaskQuestion | None) -> TaskQuestion | None:
    """Build the question about a task; the found task's capability and priority override the given ones."""
    if seen is None or seen.capability is None:
        return given
    asked = given or TaskQuestion(seen.capability)
    return replace(asked, capability=seen.capability, priority=seen.priority or Priority.P1)
