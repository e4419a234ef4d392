"""What is broken, and when: a schedule that the seed decides alone.

Every kind comes before any comes twice as often as its weight says: a short run meets all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import MappingProxyType

AGENT_KILL, AGENT_STOP = "agent.kill", "agent.stop"
DISPATCHER_KILL, DISPATCHER_STOP = "dispatcher.kill", "dispatcher.stop"
REDIS_KILL, REDIS_WIPE = "redis.kill", "redis.wipe"
BROKER_KILL, BROKER_WIPE, BROKER_STOP = "broker.kill", "broker.wipe", "broker.stop"
REDIS_STOP, STRANGER_SEND, QUEUE_STOP = "redis.stop", "stranger.send", "queue.stop"
BROKER_PART, REDIS_PART = "broker.part", "redis.part"
BOTH_WAYS, MUTE, DEAF, SLOW = "both ways", "mute", "deaf", "slow"
"""How a process is parted from a server: nothing gets through, nothing that it sends, nothing that it is sent; or all
does, late."""

KINDS: Mapping[str, str] = MappingProxyType(
    {
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
    }
)
"""Every kind of fault, and what it does."""

WEIGHTS: Mapping[str, int] = MappingProxyType(
    {
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
    }
)
"""How often each comes, beside the others. Who is stopped is away for long, and most are to be at work; yet only
who comes back has late results to tell.

The broker has a rhythm of its own: it takes seconds to start.
"""
QUICK_SECONDS = (0.3, 1.1)
"""Between two faults of processes and Redis."""
BROKER_SECONDS = (9.0, 15.0)
"""Between two faults of the broker; the first comes sooner."""
FIRST_BROKER_SECONDS = (4.0, 8.0)
PART_SECONDS = (0.5, 8.0)
"""A partition may be longer than any lease."""
STOP_SECONDS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        AGENT_STOP: (2.0, 10.0),
        DISPATCHER_STOP: (1.5, 6.0),
        BROKER_STOP: (0.5, 6.0),
        REDIS_STOP: (0.2, 3.0),
        QUEUE_STOP: (1.0, 8.0),
        BROKER_PART: PART_SECONDS,
        REDIS_PART: PART_SECONDS,
    }
)
"""An agent's lease lasts 3 s, a dispatcher's 2.5 s. A few come back before anybody has noticed."""
BACK_SECONDS = (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to break."""

    at_seconds: float
    """Since the start of the run."""
    kind: str
    draw: float
    """In [0, 1): which of those that could be hit."""
    seconds: float
    """How long it stays stopped, parted, or down."""

    @property
    def role(self) -> str:
        """Who is hit, or parted from: agent, dispatcher, redis, broker, queue; or who does it: stranger."""
        return self.kind.partition(".")[0]

    @property
    def act(self) -> str:
        """What is done: kill, stop, part, wipe, send."""
        return self.kind.partition(".")[2]


def schedule(seed: int, seconds: float, kinds: Sequence[str]) -> list[Fault]:
    """The faults of a run that lasts so long, in order of time. The same seed gives the same."""
    random = Random(f"{seed}/faults")  # noqa: S311 - it is to be foreseen
    quick = [kind for kind in WEIGHTS if kind in kinds]
    slow = [kind for kind in (BROKER_KILL, BROKER_WIPE, BROKER_STOP, QUEUE_STOP) if kind in kinds]
    random.shuffle(slow)
    faults = [*_quick(random, seconds, quick), *_slow(random, seconds, slow)]
    return sorted(faults, key=lambda fault: fault.at_seconds)


def lone(seed: int, kinds: Sequence[str]) -> list[Fault]:
    """One fault to come by itself, after all others: of it one can say how long it was felt."""
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
