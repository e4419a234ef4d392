"""Use cases that say why no agent takes a task, from the registry, the broker and the agents.

Every function raises BrokerUnavailable, and the other retryable errors of `TaskLocator.find`, when the broker does not
answer, and goes on without the registry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from coditect.broker.port import Broker
from coditect.errors import RegistryUnavailable
from coditect.model.capability import Priority
from coditect.model.registration import AgentRecord
from coditect.operations.connections import Connections
from coditect.operations.diagnosis.explain import Explanation, QueueSeen, TakeVerdict, TaskQuestion, explain
from coditect.operations.diagnosis.locate import TaskLocator
from coditect.operations.diagnosis.locations import Found, TaskLocation, task_verdict, unseen
from coditect.operations.fleet import find_agents
from coditect.registry.port import Search
from coditect.wire import routing

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

    The search is that of `TaskLocator.find`: it fetches at most `most` messages of each queue and gives them back. With
    `given` the task queues of its capability are searched, too.
    """
    fleet = await _fleet(opened)
    named = () if given is None else (given.capability,)
    async with opened.broker() as broker:
        found = await TaskLocator(broker).find(task_id, waiting=named, dead=_offered(fleet).union(named), most=most)
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
        locator = TaskLocator(broker)
        found = await locator.find(task_id, waiting=sorted(offered), dead=offered, most=DEFAULT_MOST)
        if not found.locations:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            found = await locator.find(task_id, waiting=sorted(offered), dead=offered, most=DEFAULT_MOST)
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
        if stats is None:
            queues.append(QueueSeen(name, exists=False))
        else:
            queues.append(QueueSeen(name, exists=True, messages=stats.messages, consumers=stats.consumers))
    return explain(question, fleet, queues)


def _question_of(seen: TaskLocation | None, given: TaskQuestion | None) -> TaskQuestion | None:
    """Build the question about a task; the found task's capability and priority override the given ones."""
    if seen is None or seen.capability is None:
        return given
    return TaskQuestion(seen.capability, seen.priority or Priority.P1, given.tags if given is not None else frozenset())
