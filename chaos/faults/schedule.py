"""The schedule of a run's faults, whose random draws depend on the seed alone.

The faults come in rounds, each with every kind as often as its weight says: a short run has all kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

AGENT_KILL, AGENT_STOP = "agent.kill", "agent.stop"
DISPATCHER_KILL, DISPATCHER_STOP = "dispatcher.kill", "dispatcher.stop"
REDIS_KILL, REDIS_WIPE = "redis.kill", "redis.wipe"
BROKER_KILL, BROKER_WIPE, BROKER_STOP = "broker.kill", "broker.wipe", "broker.stop"
REDIS_STOP, STRANGER_SEND, QUEUE_STOP = "redis.stop", "stranger.send", "queue.stop"
REQUEST_SEND = "request.send"
BROKER_PART, REDIS_PART = "broker.part", "redis.part"
STORE_KILL, STORE_STOP = "store.kill", "store.stop"
BOTH_WAYS, MUTE, DEAF, SLOW = "both ways", "mute", "deaf", "slow"
"""The manners of a network fault between a process and a server.

Nothing gets through either way, to the server, or from the server; or all gets through, late.
"""

KINDS: Mapping[str, str] = {
    AGENT_KILL: "an agent is killed with -9 and started again",
    AGENT_STOP: "an agent is stopped, mostly for longer than its lease, and continued",
    DISPATCHER_KILL: "a dispatcher is killed with -9 and started again",
    DISPATCHER_STOP: "a dispatcher is stopped, mostly for longer than its leases, and continued",
    REDIS_KILL: "Redis is killed with -9 and started again on its data",
    REDIS_WIPE: "Redis loses everything (FLUSHALL)",
    BROKER_KILL: "RabbitMQ is killed with -9 and started again on its data",
    BROKER_WIPE: "RabbitMQ is killed with -9, its data removed, and started again",
    BROKER_STOP: "RabbitMQ is stopped, and continued: its connections stand, and it is silent",
    QUEUE_STOP: "one queue's leader is suspended, and continued: the queue is silent, all others go on",
    REDIS_STOP: "Redis is stopped, and continued",
    BROKER_PART: "an agent or a dispatcher alone is parted from RabbitMQ, one way or both, or reaches it slowly",
    REDIS_PART: "the same from Redis",
    STRANGER_SEND: "strangers send garbage, forged owners, endless histories, return addresses of others",
    REQUEST_SEND: "requests to the control plane arrive again or late, up to the instant at which they expire",
}
"""The kinds of faults of every run, each with a description."""
STORE_KINDS: Mapping[str, str] = {
    STORE_KILL: "a process of FoundationDB is killed with -9 and started again on its data",
    STORE_STOP: "FoundationDB's coordinator is stopped, and continued: the whole store is silent",
}
"""The kinds of faults that a run on FoundationDB has beside the others."""

WEIGHTS: Mapping[str, int] = {
    AGENT_KILL: 4,
    AGENT_STOP: 3,
    DISPATCHER_KILL: 3,
    DISPATCHER_STOP: 1,
    REDIS_KILL: 1,
    REDIS_WIPE: 2,
    REDIS_STOP: 1,
    BROKER_PART: 2,
    REDIS_PART: 1,
    STRANGER_SEND: 1,
    REQUEST_SEND: 2,
    STORE_KILL: 1,
    STORE_STOP: 1,
}
"""The relative frequency of each kind of fault.

A stopped process is away for long, and most processes are to be at work; yet only a process that comes back has late
results to report. The faults of the broker have a rhythm of their own: it takes seconds to start.
"""
QUICK_SECONDS = (0.3, 1.1)
"""The shortest and longest pause between two faults of processes and Redis."""
BROKER_SECONDS = (9.0, 15.0)
"""The shortest and longest pause between two faults of the broker; the first fault comes sooner."""
FIRST_BROKER_SECONDS = (4.0, 8.0)
PART_SECONDS = (0.5, 8.0)
"""The shortest and longest partition between a process and a server; it may outlast any lease."""
STOP_SECONDS: Mapping[str, tuple[float, float]] = {
    AGENT_STOP: (2.0, 10.0),
    DISPATCHER_STOP: (1.5, 6.0),
    BROKER_STOP: (0.5, 6.0),
    REDIS_STOP: (0.2, 3.0),
    QUEUE_STOP: (1.0, 8.0),
    STORE_STOP: (0.5, 4.0),
    BROKER_PART: PART_SECONDS,
    REDIS_PART: PART_SECONDS,
}
"""The shortest and longest time for which a victim is stopped or cut off, by the kind of fault.

An agent's lease lasts 3 s, a dispatcher's 2.5 s, and some stops are too short to be noticed.
"""
BACK_SECONDS = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """A planned fault: its time, its kind, its length, and the random number that chooses its victim."""

    at_seconds: float
    """The time of the fault since the start of the run."""
    kind: str
    draw: float
    """A number in [0, 1) that chooses the victim among the possible ones."""
    seconds: float
    """The time for which the victim stays stopped, cut off, or down."""

    @property
    def role(self) -> str:
        """The target of the fault: agent, dispatcher, redis, broker, queue, store, stranger (messages) or request."""
        return self.kind.partition(".")[0]

    @property
    def act(self) -> str:
        """The fault's action: kill, stop, wipe (delete data), part (cut or slow connections), or send (messages)."""
        return self.kind.partition(".")[2]


def kinds_with(*, foundationdb: bool) -> Mapping[str, str]:
    """Return the kinds of faults of a run, with descriptions; on FoundationDB also the faults of its processes."""
    return {**KINDS, **STORE_KINDS} if foundationdb else KINDS


def schedule(seed: int, seconds: float, kinds: Sequence[str]) -> list[Fault]:
    """Return the faults of the given kinds for a run's length, in order of time; equal arguments give equal faults."""
    random = Random(f"{seed}/faults")  # noqa: S311 - it is to be foreseen
    quick = [kind for kind in WEIGHTS if kind in kinds]
    slow = [kind for kind in (BROKER_KILL, BROKER_WIPE, BROKER_STOP, QUEUE_STOP) if kind in kinds]
    random.shuffle(slow)
    faults = [*_quick(random, seconds, quick), *_slow(random, seconds, slow)]
    return sorted(faults, key=lambda fault: fault.at_seconds)


def lone(seed: int, kinds: Sequence[str]) -> list[Fault]:
    """Return a list of one random fault of the given kinds, to measure its effect alone; empty if `kinds` is empty."""
    random = Random(f"{seed}/lone")  # noqa: S311 - it is to be foreseen
    if not kinds:
        return []
    kind = random.choice([*kinds])
    return [Fault(0.0, kind, random.random(), random.uniform(*STOP_SECONDS.get(kind, BACK_SECONDS)))]


def _quick(random: Random, seconds: float, kinds: Sequence[str]) -> Iterator[Fault]:
    bag: list[str] = []
    at = random.uniform(*QUICK_SECONDS) if kinds else seconds
    while at < seconds:
        if not bag:
            bag = [kind for kind in kinds for _ in range(WEIGHTS[kind])]
            random.shuffle(bag)
        kind = bag.pop()
        yield Fault(at, kind, random.random(), random.uniform(*STOP_SECONDS.get(kind, BACK_SECONDS)))
        at += random.uniform(*QUICK_SECONDS)


def _slow(random: Random, seconds: float, kinds: Sequence[str]) -> Iterator[Fault]:
    at, number = random.uniform(*FIRST_BROKER_SECONDS), 0
    while kinds and at < seconds:
        kind = kinds[number % len(kinds)]
        yield Fault(at, kind, random.random(), random.uniform(*STOP_SECONDS.get(kind, BACK_SECONDS)))
        at, number = at + random.uniform(*BROKER_SECONDS), number + 1
