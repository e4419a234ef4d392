"""The scorecard: the targets of a fleet, each with the value measured now, how it was measured, and a verdict.

A measurement reads and never submits a task. What happened before comes from the control plane's records and from
counters in agents and dispatchers; what happens now is watched for a few seconds. Where nothing happened that a target
is about, the value is unknown: an idle fleet neither passes nor fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from coditect.aio.clock import SystemClock
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker
from coditect.client.approvals import FinishedCounts
from coditect.client.client import Client
from coditect.client.coordination import LockRow
from coditect.errors import ControlPlaneRequired, RegistryUnavailable, Retryable
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord
from coditect.operations.connections import Connections
from coditect.operations.load import Utilisation, percentiles
from coditect.operations.locate import PingReply, ask_agents
from coditect.operations.status import RefusalCounts, cluster_status, has_dispatcher, list_queues
from coditect.registry.port import Registry, Search
from coditect.telemetry.metrics import LOCK_CONTENTIONS, LOCK_TIMEOUTS, LOCK_WAIT, QUEUE_WAIT, Histogram
from coditect.wire import control_messages

PERIOD_MS = 24 * 3_600_000
"""The period before now of which finished workflows count, by whole hours."""
IN_PERIOD = "finished in this hour and the 24 before it"
SILENT_SECONDS = 2.5
"""How long agents may take to answer; longer than their target allows, so that a silent agent misses it."""
WATCHES = 6
WATCH_PAUSE_SECONDS = 1.0
"""The pause between two reads of agents and queues; agents report their load once a second."""
STATE_QUERIES = 20
STATE_SPACE = "scorecard"
"""The name of a shared space, without any key, that is read to measure how long a read takes."""
MOST_LOCKS = 1_000
MOST = 1e15
"""The bound of a count or a histogram's bounds in an agent's answer; an answer with more is malformed."""
CONTROL_SECONDS = 10.0
"""How long the control plane may take to answer a question, and to answer all timed reads of state."""
NO_CONTROL_PLANE = "no dispatcher runs"
LATE_CONTROL_PLANE = f"the control plane did not answer in {CONTROL_SECONDS:.0f} s"
NO_REGISTRY = "the registry does not answer"


class Verdict(StrEnum):
    """The verdict about a target: met, missed, or unknown because there is nothing to measure."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    UNKNOWN = "unknown"


class Bound(StrEnum):
    """The relation in which a measured value must be to its target's limit."""

    AT_LEAST = "≥"
    ABOVE = ">"
    AT_MOST = "≤"
    BELOW = "<"

    def holds(self, value: float, limit: float) -> bool:
        """Tell whether a value is in this relation to a limit."""
        match self:
            case Bound.AT_LEAST:
                return value >= limit
            case Bound.ABOVE:
                return value > limit
            case Bound.AT_MOST:
                return value <= limit
            case Bound.BELOW:
                return value < limit


@dataclass(frozen=True, slots=True)
class Measure:
    """A measured value, in the unit of its target, and a sentence that says how it was measured."""

    value: float | None
    """None when there was nothing to measure; `how` then says what was missing."""
    how: str


@dataclass(frozen=True, slots=True)
class Target:
    """A target of the fleet: the limit for a value, and the value's unit."""

    bound: Bound
    limit: float
    unit: str


TARGETS: Mapping[str, Target] = {
    "autonomy": Target(Bound.AT_LEAST, 95, "%"),
    "dispatch": Target(Bound.BELOW, 5, "s"),
    "agent to agent": Target(Bound.BELOW, 2, "s"),
    "throughput": Target(Bound.AT_LEAST, 100, "tasks/min"),
    "submits served": Target(Bound.AT_LEAST, 99.9, "%"),
    "recovery": Target(Bound.BELOW, 60, "s"),
    "utilization": Target(Bound.AT_LEAST, 70, "%"),
    "completion": Target(Bound.ABOVE, 95, "%"),
    "state query": Target(Bound.BELOW, 50, "ms"),
    "lock collisions": Target(Bound.BELOW, 1, "%"),
    "capability matching": Target(Bound.AT_LEAST, 100, "%"),
    "locks freed": Target(Bound.AT_MOST, 5, "s"),
}
"""All targets of the scorecard by name, in their order."""


@dataclass(frozen=True, slots=True)
class ScorecardRow:
    """A target with its measured value and its verdict."""

    name: str
    bound: Bound
    limit: float
    unit: str
    """The unit of `limit` and `value`: %, s, ms or tasks/min."""
    value: float | None
    """The measured value; None when there was nothing to measure."""
    verdict: Verdict
    how: str
    """How the value was measured, or why there is none."""


@dataclass(frozen=True, slots=True)
class Scorecard:
    """The targets of a fleet beside what was measured."""

    at_ms: int
    rows: tuple[ScorecardRow, ...]

    def counts(self, verdict: Verdict) -> int:
        """Return the number of targets with a verdict."""
        return sum(row.verdict is verdict for row in self.rows)


def score(measures: Mapping[str, Measure]) -> Scorecard:
    """Judge measured values, given by the names of their targets; a target without a measure is unknown."""
    rows = []
    for name, target in TARGETS.items():
        measure = measures.get(name, Measure(None, "it was not measured"))
        verdict = Verdict.UNKNOWN
        if measure.value is not None:
            verdict = Verdict.PASS if target.bound.holds(measure.value, target.limit) else Verdict.FAIL
        shown = None if measure.value is None else round(measure.value, 3)
        rows.append(ScorecardRow(name, target.bound, target.limit, target.unit, shown, verdict, measure.how))
    return Scorecard(SystemClock().now_ms(), tuple(rows))


async def take_scorecard(opened: Connections) -> Scorecard:
    """Measure the fleet for five seconds, and judge each target; read-only.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    return score(await measure_fleet(opened))


class SharedScorecard:
    """The scorecard for all callers of a process: callers that ask while the fleet is measured get that measurement."""

    def __init__(self, opened: Connections, background: Supervisor) -> None:
        self._opened = opened
        self._background = background
        self._running: asyncio.Task[Scorecard] | None = None

    async def take(self) -> Scorecard:
        """Return the scorecard of the measurement that runs, or of a new one; it goes on if the caller is canceled.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        if self._running is None or self._running.done():
            work = take_scorecard(self._opened)
            self._running = self._background.start(work, name="take the scorecard", awaited=True)
        return await asyncio.shield(self._running)


async def measure_fleet(opened: Connections) -> dict[str, Measure]:
    """Measure the fleet for five seconds; return a measure for each target, without values where nothing happened.

    Raises:
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    seen, control = await asyncio.gather(_watch(opened), _ask_control_plane(opened))
    totals = _totals(seen.replies)
    return {
        **_finished(control),
        "dispatch": _dispatch(totals.get(QUEUE_WAIT.name)),
        "agent to agent": _answers(seen),
        "throughput": _throughput(seen.looks),
        "submits served": _served(seen.looks[-1], control),
        **_recovery(control),
        "utilization": _utilization(seen.looks),
        "state query": _state_query(control),
        "lock collisions": _collisions(totals, control.locks),
        "capability matching": _matching(seen),
    }


@dataclass(frozen=True, slots=True)
class _Look:
    """The living agents and the lengths of the queues at one instant of a measurement."""

    at_seconds: float
    agents: tuple[AgentRecord, ...]
    waiting: Mapping[str, int]
    """The number of waiting tasks by capability, of capabilities with any."""


@dataclass(frozen=True, slots=True)
class _Watched:
    """The samples of agents and queues in a measurement, and the agents' answers to a ping."""

    looks: Sequence[_Look]
    replies: Sequence[PingReply]
    answer_seconds: float
    """The time from a question to all agents to the last answer in time."""
    found: Mapping[str, bool]
    """Whether a search for a capability found exactly the agents that declare it, by capability."""
    trouble: str = ""
    """Why agents could not be seen; empty when they were."""


async def _watch(opened: Connections) -> _Watched:
    """Read agents and queues once a second, ask all agents for their metrics, and search for every capability."""
    looks, trouble, found = list[_Look](), "", dict[str, bool]()
    async with opened.registry() as registry, opened.broker() as broker:
        try:
            found = await _search(registry)
            for number in range(WATCHES):
                await asyncio.sleep(WATCH_PAUSE_SECONDS if number else 0.0)
                looks.append(await _look(registry, broker))
        except RegistryUnavailable:
            trouble = NO_REGISTRY
        looks = looks or [_Look(0.0, (), {})]
        wanted = {str(agent.agent_id) for agent in looks[-1].agents}
        began = _now()
        replies = await _ask_metrics(broker, wanted)
        return _Watched(looks, replies, _now() - began, found, trouble)


async def _look(registry: Registry, broker: Broker) -> _Look:
    agents = await registry.find(Search())
    names = {offer.name for agent in agents for offer in agent.registration.capabilities}
    queues = await list_queues(broker, tuple(sorted(names)))
    waiting = {queue.capability: sum(level.messages for level in queue.levels) for queue in queues}
    return _Look(_now(), agents, {name: count for name, count in waiting.items() if count})


async def _search(registry: Registry) -> dict[str, bool]:
    """Tell for each offered capability whether a search finds exactly the agents that declare it.

    Agents that come, go or declare something else meanwhile do not count.
    """
    before = _declared(await registry.find(Search()))
    names = sorted(frozenset[str]().union(*before.values()))
    hits = {name: {agent.agent_id for agent in await registry.find(Search(name))} for name in names}
    after = _declared(await registry.find(Search()))
    stayed = {agent for agent, offers in before.items() if after.get(agent) == offers}
    return {name: hits[name] & stayed == {agent for agent in stayed if name in before[agent]} for name in names}


def _declared(agents: Iterable[AgentRecord]) -> dict[AgentId, frozenset[str]]:
    return {agent.agent_id: frozenset(offer.name for offer in agent.registration.capabilities) for agent in agents}


def _offers(agent: AgentRecord, name: str) -> bool:
    return any(offer.name == name for offer in agent.registration.capabilities)


async def _ask_metrics(broker: Broker, agents: set[str]) -> list[PingReply]:
    if not agents:
        return []
    names = [metric.name for metric in (QUEUE_WAIT, LOCK_WAIT, LOCK_CONTENTIONS, LOCK_TIMEOUTS)]
    ping = control_messages.ping(reply_to="", metrics=names)
    return await ask_agents(broker, ping, enough=lambda heard: _senders(heard) >= agents, within_seconds=SILENT_SECONDS)


def _senders(replies: Iterable[PingReply]) -> set[str]:
    return {str(reply.get("agent_id")) for reply in replies}


@dataclass(slots=True)
class _Control:
    """The control plane's answers to the measurement, as far as they came in time."""

    trouble: str
    """Why an answer is missing, if any is."""
    finished: FinishedCounts | None = None
    """The finished workflows of the period."""
    dispatchers: tuple[RefusalCounts, ...] = ()
    """The counts of the dispatchers that answered."""
    locks: tuple[LockRow, ...] | None = None
    query_ms: list[float] = field(default_factory=list)
    """The durations of reads of state."""
    queried: str = "shared state"
    """What was read."""


async def _ask_control_plane(opened: Connections) -> _Control:
    """Ask the control plane for its records, then time reads of state; what was answered in time is kept."""
    async with opened.broker() as broker:
        if not await has_dispatcher(broker):
            return _Control(NO_CONTROL_PLANE)
        control = _Control(LATE_CONTROL_PLANE)
        with suppress(Retryable):
            async with opened.fleet() as client:
                await asyncio.gather(
                    _in_time(_read_counts(broker, control)),
                    _in_time(_read_finished(client, control)),
                    _in_time(_read_locks(client, control)),
                )
                await _in_time(_time_queries(client, control))
        return control


async def _in_time(question: Awaitable[None]) -> None:
    with suppress(ControlPlaneRequired, Retryable, TimeoutError):
        async with asyncio.timeout(CONTROL_SECONDS):
            await question


async def _read_counts(broker: Broker, control: _Control) -> None:
    cluster = await cluster_status(broker)
    control.dispatchers = tuple(counts for row in cluster.dispatchers if (counts := row.counts) is not None)


async def _read_finished(client: Client, control: _Control) -> None:
    now_ms = SystemClock().now_ms()
    control.finished = (await client.approvals.autonomy(since_ms=now_ms - PERIOD_MS, until_ms=now_ms)).workflows


async def _read_locks(client: Client, control: _Control) -> None:
    control.locks = tuple([row async for row in client.locks.list(limit=MOST_LOCKS)])


async def _time_queries(client: Client, control: _Control) -> None:
    """Time reads of shared state and, if there is a workflow, of the latest workflow's state.

    A read without an answer counts as one that took all the time.
    """
    space = client.state(STATE_SPACE)
    reads: list[Callable[[], Awaitable[object]]] = [lambda: space.get("none")]
    with suppress(ControlPlaneRequired, Retryable):
        async for row in client.workflows.list(limit=1):
            reads.append(client.workflows.get(row.workflow).overview)
            control.queried = "shared state and a workflow's state"
    for _ in range(STATE_QUERIES):
        for read in reads:
            began = _now()
            try:
                await read()
            except BaseException:
                control.query_ms.append(1000 * CONTROL_SECONDS)
                raise
            control.query_ms.append(1000 * (_now() - began))


def _now() -> float:
    return asyncio.get_running_loop().time()


# -- what was seen, as measures -----------------------------------------------------------------------------


def _finished(control: _Control) -> dict[str, Measure]:
    """Return the measures of autonomy and completion."""
    workflows, names = control.finished, ("autonomy", "completion")
    if workflows is None:
        return dict.fromkeys(names, Measure(None, control.trouble))
    if not workflows.finished:
        return dict.fromkeys(names, Measure(None, f"no workflow {IN_PERIOD}"))
    autonomy, completed = 100 * (workflows.autonomy or 0.0), 100 * workflows.completed / workflows.finished
    finished = f"of {_count(workflows.finished, 'workflow')} that {IN_PERIOD}"
    alone = f"{workflows.finished - workflows.by_hand} {finished} needed no action of a person"
    return {
        "autonomy": Measure(autonomy, alone),
        "completion": Measure(completed, f"{workflows.completed} {finished} completed"),
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun if number == 1 else noun + 's'}"


def _totals(replies: Iterable[PingReply]) -> dict[str, int | Histogram]:
    """Add up the metrics in agents' answers, by name; malformed ones and those with other buckets are left out."""
    counters, histograms = dict[str, int](), dict[str, Histogram]()
    for name, total in (item for reply in replies for item in _metrics(reply)):
        match total:
            case int() if _is_count(total):
                counters[name] = counters.get(name, 0) + total
            case {"bounds": [*bounds], "counts": [*counts]} if _are_bounds(bounds) and all(map(_is_count, counts)):
                sums = histograms.setdefault(name, Histogram(tuple(bounds)))
                if sums.bounds == tuple(bounds) and len(counts) == len(sums.counts):
                    sums.counts = [sum(pair) for pair in zip(sums.counts, counts, strict=True)]
    return {**counters, **histograms}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < MOST


def _are_bounds(values: Sequence[object]) -> bool:
    """Tell whether values are numbers in ascending order with which one can calculate."""
    numbers = [value for value in values if isinstance(value, int | float) and abs(value) < MOST]
    return len(numbers) == len(values) and all(low < high for low, high in pairwise(numbers))


def _metrics(reply: PingReply) -> Iterable[tuple[str, object]]:
    metrics = reply.get("metrics")
    return metrics.items() if isinstance(metrics, dict) else ()


def _dispatch(waits: int | Histogram | None) -> Measure:
    if not isinstance(waits, Histogram) or not waits.number():
        return Measure(None, "no living agent has begun a task yet")
    return Measure(waits.quantile(0.99), "99th percentile from publication to start, of tasks that living agents began")


def _answers(seen: _Watched) -> Measure:
    asked = len(seen.looks[-1].agents)
    if not asked:
        return Measure(None, seen.trouble or "no agent lives")
    silent = len({str(agent.agent_id) for agent in seen.looks[-1].agents} - _senders(seen.replies))
    how = f"a message through the broker to {_count(asked, 'agent')} and the slowest answer"
    if not silent:
        return Measure(seen.answer_seconds, how)
    return Measure(
        max(seen.answer_seconds, SILENT_SECONDS), f"{how}; {silent} of them did not answer within {SILENT_SECONDS} s"
    )


def _throughput(looks: Sequence[_Look]) -> Measure:
    """Measure the ended tasks in a minute; a low rate counts only if tasks waited all the time."""
    first, last = looks[0], looks[-1]
    span = last.at_seconds - first.at_seconds
    if not span:
        return Measure(None, NO_REGISTRY)
    before = {agent.agent_id: _ended(agent) for agent in first.agents}
    done = sum(max(0, _ended(agent) - before[agent.agent_id]) for agent in last.agents if agent.agent_id in before)
    rate = 60 * done / span
    how = f"attempts, failed ones among them, that agents ended in {span:.0f} s, times {60 / span:.0f}"
    if Bound.AT_LEAST.holds(rate, TARGETS["throughput"].limit) or all(look.waiting for look in looks):
        return Measure(rate, how)
    return Measure(None, f"{rate:.0f} tasks/min, and none waited: the fleet was asked for no more")


def _ended(agent: AgentRecord) -> int:
    return agent.load.completed + agent.load.failed


def _served(last: _Look, control: _Control) -> Measure:
    ended = sum(map(_ended, last.agents))
    unanswered = sum(counts.dropped + counts.unrecorded for counts in control.dispatchers)
    if not control.dispatchers:
        return Measure(None, f"{control.trouble}: it counts the tasks without an answer")
    if not ended + unanswered:
        return Measure(None, "no living agent has ended a task yet")
    how = f"attempts that living agents ended, failed ones among them: {ended}; "
    how += f"tasks whose senders got no answer: {unanswered}"
    return Measure(100 * ended / (ended + unanswered), how)


def _recovery(control: _Control) -> dict[str, Measure]:
    """Return the measures of recovery and of locks, which dispatchers note when agents are lost."""
    recovery_ms = [counts.recovery_ms for counts in control.dispatchers]
    freed_ms = [counts.freed_ms for counts in control.dispatchers]
    return {
        "recovery": _slowest(control, recovery_ms, "that ran a workflow's task", "its tasks were with others"),
        "locks freed": _slowest(control, freed_ms, "with a lock, or a request for one,", "its locks were released"),
    }


def _slowest(control: _Control, times_ms: Sequence[int], lost: str, end: str) -> Measure:
    if not control.dispatchers:
        return Measure(None, control.trouble)
    if not any(times_ms):
        return Measure(None, f"no agent {lost} was lost since the dispatchers began")
    return Measure(max(times_ms) / 1000, f"the slowest, from a lost agent's last sign of life until {end}")


def _utilization(looks: Sequence[_Look]) -> Measure:
    utilisation = Utilisation()
    for look in looks:
        agents = [agent for agent in look.agents if any(_offers(agent, name) for name in look.waiting)]
        utilisation.look(agents, sum(agent.load.running for agent in agents) + sum(look.waiting.values()))
    if utilisation.share is None:
        return Measure(None, "tasks did not outnumber slots for two seconds")
    return Measure(100 * utilisation.share, f"slots in use while tasks waited, in {utilisation.looks} looks")


def _state_query(control: _Control) -> Measure:
    if not control.query_ms:
        return Measure(None, control.trouble)
    how = f"95th percentile of {_count(len(control.query_ms), 'read')} of {control.queried}"
    return Measure(percentiles(control.query_ms).p95, how)


def _collisions(totals: Mapping[str, int | Histogram], locks: Iterable[LockRow] | None) -> Measure:
    """Measure the requests for locks that ended without the lock, and resources with two exclusive holders."""
    granted, contended, timeouts = (totals.get(metric.name) for metric in (LOCK_WAIT, LOCK_CONTENTIONS, LOCK_TIMEOUTS))
    grants = granted.number() if isinstance(granted, Histogram) else 0
    refused, waited = (total if isinstance(total, int) else 0 for total in (timeouts, contended))
    holders: dict[str, list[str]] = {}
    for row in locks or ():
        if row.state == "held":
            holders.setdefault(row.resource, []).append(row.mode)
    doubled = sum(len(modes) > 1 and "exclusive" in modes for modes in holders.values())
    if not grants + refused + doubled:
        return Measure(None, "no living agent has asked for a lock yet")
    how = f"{refused} of {_count(grants + refused, 'request')} of living agents timed out; "
    how += f"{waited} met another holder and waited their turn; locks with two holders: "
    how += "unknown" if locks is None else str(doubled)
    return Measure(100 * (refused + doubled) / (grants + refused + doubled), how)


def _matching(seen: _Watched) -> Measure:
    if not seen.found:
        return Measure(None, seen.trouble or "no agent lives")
    exact = sum(seen.found.values())
    how = f"searches that found exactly the agents that declare the capability, of {len(seen.found)}"
    return Measure(100 * exact / len(seen.found), how)
