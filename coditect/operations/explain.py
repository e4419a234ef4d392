"""The pure rules that explain why no agent takes a task: a reason for each agent, and a verdict with a fix.

The answer is a snapshot: an agent reports its load once a second, and a queue's length is the broker's of this moment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from coditect.model.capability import Priority, Strategy, nearest_names
from coditect.model.ids import AgentId
from coditect.model.prediction import TaskKind, input_sizes, predict, size_class
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.registry.scoring import choose
from coditect.registry.selector import newest_offer
from coditect.wire import routing
from coditect.wire.tasks import input_features

START_ONE = "start an agent that declares it: coditect agent run FILE"


class Obstacle(StrEnum):
    """A reason why an agent would not take a task; of all agents' reasons, the first in this order decides the fix."""

    BREAKER_OPEN = "breaker_open"
    RATE_LIMITED = "rate_limited"
    KEPT_FOR_P0 = "kept_for_p0"
    NO_FREE_SLOT = "no_free_slot"
    NOT_CONSUMED = "not_consumed"
    NO_QUEUE = "no_queue"
    STARTING = "starting"
    DRAINING = "draining"
    OFFLINE = "offline"
    OTHER_VERSION = "other_version"
    NOT_OFFERED = "not_offered"


_TOLD = {
    Obstacle.BREAKER_OPEN: "waiting for an open breaker",
    Obstacle.RATE_LIMITED: "waiting for the rate",
    Obstacle.KEPT_FOR_P0: "with the last free slot kept for P0",
    Obstacle.NO_FREE_SLOT: "without a free slot",
    Obstacle.STARTING: "still starting",
    Obstacle.DRAINING: "draining",
    Obstacle.OFFLINE: "offline",
}
_FIXES = {
    Obstacle.BREAKER_OPEN: "wait until its dependency recovers; `coditect breaker get NAME` says why it opened",
    Obstacle.RATE_LIMITED: "wait: its rate, which bounds the whole fleet, is in `coditect capability get`",
    Obstacle.KEPT_FOR_P0: "wait for a slot, submit it with --priority p0, or start another agent",
    Obstacle.NO_FREE_SLOT: "wait for a slot, or start more: coditect agent run FILE --processes N, or --slots N",
    Obstacle.STARTING: "look again in a few seconds",
    Obstacle.DRAINING: START_ONE,
    Obstacle.OFFLINE: START_ONE,
}
_DOES_NOT_OFFER = (Obstacle.NOT_OFFERED, Obstacle.OTHER_VERSION)


@dataclass(frozen=True, slots=True)
class TaskQuestion:
    """The task that an operator asks about, as far as it matters: its capability, its priority and the wanted tags."""

    capability: str
    priority: Priority = Priority.P1
    tags: frozenset[str] = frozenset()
    body: bytes | None = None
    """The task's input as JSON; with it, the answer says what each agent is expected to need for it."""

    @property
    def queue(self) -> str:
        """The name of the queue in which the task waits."""
        return routing.task_queue(self.capability, self.priority)


@dataclass(frozen=True, slots=True)
class QueueSeen:
    """A queue's message and consumer counts as the broker reported them."""

    name: str
    exists: bool
    messages: int = 0
    """The number of ready messages, without those delivered and not yet settled."""
    consumers: int = 0
    """The number of consumers: one or more for each agent with a free slot; a full agent stops consuming."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The diagnosis of one agent: whether it would take the task now, and the reason as text for people."""

    agent_id: AgentId
    version: str
    obstacle: Obstacle | None
    """The reason why the agent would not take the task now; None when it would."""
    text: str


@dataclass(frozen=True, slots=True)
class TakeVerdict:
    """The answer to `--why-not` in one sentence, with a fix, which is empty when nothing is wrong."""

    sentence: str
    fix: str = ""
    takes: bool = False
    """Whether an agent would take the task now, or already has the one task asked about."""
    known: bool = True
    """Whether the capability exists, or whether the one task asked about was found."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer why no agent takes a task: the verdict, each agent's diagnosis, and the queues."""

    question: TaskQuestion
    agents: tuple[Diagnosis, ...]
    queues: tuple[QueueSeen, ...]
    nearest: tuple[str, ...]
    """Names of offered capabilities similar to the unknown one of the question."""
    verdict: TakeVerdict


def explain(question: TaskQuestion, fleet: Sequence[AgentRecord] | None, queues: Sequence[QueueSeen]) -> Explanation:
    """Explain why no agent takes a task, or which agents would, from the registry's records and the queues.

    `fleet` holds every agent; None when the registry does not answer. `queues` holds the queues that were looked at.
    """
    offered = {offer.name for record in fleet or () for offer in record.registration.capabilities}
    nearest = () if question.capability in offered else nearest_names(question.capability, offered)
    asked = next((queue for queue in queues if queue.name == question.queue), QueueSeen(question.queue, exists=False))
    agents = tuple(judge(record, question, fleet or (), asked) for record in fleet or ())
    agents = _with_predictions(agents, fleet or (), question)
    verdict = _without_registry(asked) if fleet is None else _verdict(question, agents, asked, nearest)
    return Explanation(question, agents, tuple(queues), nearest, verdict)


def judge(record: AgentRecord, question: TaskQuestion, fleet: Collection[AgentRecord], asked: QueueSeen) -> Diagnosis:
    """Return the diagnosis of one agent: whether it would take the task from the queue now, and else why not."""
    obstacle, text = (
        _not_offered(record, question, fleet)
        or _not_there(record)
        or _waits(record, question)
        or _no_slot(record, question.priority)
        or _unreachable(asked)
        or (None, _free(record, question))
    )
    text += _recently(record, question.capability)
    return Diagnosis(record.agent_id, record.registration.version, obstacle, text)


def _not_offered(
    record: AgentRecord, question: TaskQuestion, fleet: Collection[AgentRecord]
) -> tuple[Obstacle, str] | None:
    own = [offer.name for offer in record.registration.capabilities]
    if question.capability in own:
        return None
    versions = {
        other.registration.version
        for other in fleet
        if other.registration.name == record.registration.name
        and any(offer.name == question.capability for offer in other.registration.capabilities)
    }
    if versions:
        told = ", ".join(sorted(versions))
        return Obstacle.OTHER_VERSION, f"does not offer it in version {record.registration.version}; {told} does"
    near = ", ".join(nearest_names(question.capability, own))
    return Obstacle.NOT_OFFERED, f"does not offer it; offers {near}" if near else "does not offer it"


def _not_there(record: AgentRecord) -> tuple[Obstacle, str] | None:
    if record.lease_ms <= 0:
        return Obstacle.OFFLINE, "its lease lapsed: it is gone, frozen, or cut off from the registry"
    match record.load.status:
        case AgentStatus.OFFLINE:
            return Obstacle.OFFLINE, "is offline"
        case AgentStatus.STARTING:
            return Obstacle.STARTING, "is still starting"
        case AgentStatus.DRAINING:
            return Obstacle.DRAINING, "is draining: it takes nothing new"
        case AgentStatus.IDLE | AgentStatus.BUSY:
            return None


def _waits(record: AgentRecord, question: TaskQuestion) -> tuple[Obstacle, str] | None:
    name = question.capability
    if (breaker := dict(record.load.waiting).get(name)) is not None:
        return Obstacle.BREAKER_OPEN, f"the breaker {breaker} is open: the tasks of {name} wait in their queue"
    if (rate := dict(record.load.limited).get(name)) is not None:
        return Obstacle.RATE_LIMITED, f"the rate {rate} is used up: the tasks of {name} wait in their queue"
    return None


def _unreachable(asked: QueueSeen) -> tuple[Obstacle, str] | None:
    """Return why a free agent does not get the task; None if the queue is there, and is consumed when tasks wait."""
    if not asked.exists:
        return Obstacle.NO_QUEUE, f"has a free slot, but its queue {asked.name} is missing"
    if asked.consumers == 0 and asked.messages > 0:
        return Obstacle.NOT_CONSUMED, f"has a free slot, but does not consume {asked.name}"
    return None


def _no_slot(record: AgentRecord, priority: Priority) -> tuple[Obstacle, str] | None:
    slots, load = record.registration.slots, record.load
    suspended = f", and {load.suspended} suspended that resume first" if load.suspended else ""
    suspended += _ownerless(record)
    if record.free_slots == 0:
        return Obstacle.NO_FREE_SLOT, f"all {slots} slots are in use{suspended}"
    if record.free_slots == 1 and slots > 1 and priority is not Priority.P0:
        return Obstacle.KEPT_FOR_P0, f"its last free slot of {slots} is kept for P0, unless one runs there{suspended}"
    return None


def _free(record: AgentRecord, question: TaskQuestion) -> str:
    free = f"would take it now: {record.free_slots} of {record.registration.slots} slots are free"
    missing = sorted(question.tags - record.registration.all_tags)
    preferred = f"; it lacks {', '.join(missing)}, so agents with that are preferred" if missing else ""
    return free + preferred + _ownerless(record)


def _recently(record: AgentRecord, capability: str) -> str:
    """Return a phrase with an agent's recent mean run time and success rate by input size; empty if none is known.

    The routing strategy `adaptive` picks agents by these figures.
    """
    known = sorted(
        (one for one in record.load.recent if one.kind.capability == capability), key=lambda one: one.kind.size
    )
    told = [f"{one.mean_ms:.0f} ms, {one.success:.0%} completed ({input_sizes(one.kind)})" for one in known]
    return f"; when picked lately: {'; '.join(told)}" if told else ""


def _with_predictions(
    agents: Sequence[Diagnosis], fleet: Sequence[AgentRecord], question: TaskQuestion
) -> tuple[Diagnosis, ...]:
    """Return the diagnoses with what `predictive` expects of each agent for the question's input, and its pick."""
    offering = {
        record.agent_id: record
        for record in fleet
        if any(offer.name == question.capability for offer in record.registration.capabilities)
    }
    offer = newest_offer(offering.values(), question.capability)
    features = () if offer is None else input_features(offer.features, question.body)
    if not features:
        return tuple(agents)
    kind = TaskKind(question.capability, size_class(len(question.body or b"")), features)
    pick = choose(offering.values(), Strategy.PREDICTIVE, kind, turn=1, chance=0.0)
    told = []
    for agent in agents:
        known = offering.get(agent.agent_id)
        found = None if known is None else predict(known.load.learned, question.capability, features)
        text = agent.text if found is None else f"{agent.text}; for this input {found.why}"
        picked = pick is not None and pick.agent_id == agent.agent_id
        told.append(replace(agent, text=f"{text}; `predictive` picks it" if picked else text))
    return tuple(told)


def _ownerless(record: AgentRecord) -> str:
    waiting = _counted(record.load.awaiting_owner, "task")
    told = f"; {waiting} of workflows wait there for a dispatcher that does not answer"
    return told if record.load.awaiting_owner else ""


def _without_registry(asked: QueueSeen) -> TakeVerdict:
    said = f"{asked.name} has {_counted(asked.messages, 'task')} waiting and {_counted(asked.consumers, 'consumer')}"
    if not asked.exists:
        said = "there is no such queue"
    return TakeVerdict(
        f"The registry does not answer, so the agents are not known; the broker says: {said}",
        "coditect doctor says what is unreachable; running agents come back by themselves",
        takes=asked.exists and asked.consumers > 0,
        known=asked.exists,
    )


def _verdict(
    question: TaskQuestion, agents: Sequence[Diagnosis], asked: QueueSeen, nearest: Sequence[str]
) -> TakeVerdict:
    offering = [agent for agent in agents if agent.obstacle not in _DOES_NOT_OFFER]
    takers = [one for one in offering if one.obstacle is None]
    if not offering:
        return _nobody_offers(question, asked, nearest)
    if not asked.exists:
        return TakeVerdict(
            f"{question.capability} is offered, but its queue {asked.name} is missing: a task for it is refused",
            f"coditect topology apply --capability {question.capability}",
        )
    deaf = next((one for one in offering if one.obstacle is Obstacle.NOT_CONSUMED), None)
    if deaf is not None:
        return TakeVerdict(
            f"{deaf.agent_id} has a free slot, but no agent consumes {asked.name}, where {asked.messages} wait",
            "look again in a few seconds; when it stays so, start the agent again and look into its log",
        )
    if not takers:
        return _nobody_takes(offering, asked)
    others = f" (or {_counted(len(takers) - 1, 'other')})" if len(takers) > 1 else ""
    before = f", after {asked.messages} that wait before it" if asked.messages else ""
    return TakeVerdict(f"{takers[0].agent_id}{others} would take it now{before}", takes=True)


def _nobody_offers(question: TaskQuestion, asked: QueueSeen, nearest: Sequence[str]) -> TakeVerdict:
    name, start = question.capability, START_ONE
    meant = f"; or did you mean {', '.join(nearest)}?" if nearest else ""
    if not asked.exists:
        return TakeVerdict(
            f"No agent offers {name}, and it has no queue: a task for it is refused", start + meant, known=False
        )
    if asked.consumers:
        strangers = _counted(asked.consumers, "consumer")
        return TakeVerdict(
            f"The registry knows no agent that offers {name}, but {asked.name} has {strangers}",
            "coditect doctor; an agent that lost the registry comes back to it by itself",
            takes=True,
        )
    return TakeVerdict(
        f"No agent offers {name} now; {_counted(asked.messages, 'task')} in {asked.name} for the next agent",
        start + meant,
    )


def _nobody_takes(offering: Sequence[Diagnosis], asked: QueueSeen) -> TakeVerdict:
    counts = Counter(one.obstacle for one in offering if one.obstacle is not None)
    told = ", ".join(f"{counts[obstacle]} {text}" for obstacle, text in _TOLD.items() if counts[obstacle])
    first = next(obstacle for obstacle in Obstacle if counts[obstacle])
    waiting = f"; {asked.messages} waiting before it" if asked.messages else ""
    return TakeVerdict(f"No agent would take it now: of those that offer it {told}{waiting}", _FIXES[first])


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
