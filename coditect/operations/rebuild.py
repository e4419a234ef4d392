"""The use case of a rebuild: dispatchers restore from the ledger what the broker, Redis or RQ lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from coditect.aio.clock import SystemClock
from coditect.broker.port import Broker
from coditect.broker.topology import base_topology
from coditect.broker.topology_diff import declare_missing
from coditect.messaging.control_plane import asking
from coditect.wire.control import Verb

KINDS = {
    "queues": "queues of the control plane that were missing, declared",
    "published": "tasks that no agent had begun, published again",
    "working": "tasks that were begun on a broker that is lost, published to be executed again",
    "workflows": "workflows with jobs that RQ did not have, or not as they are",
    "jobs": "those jobs, made or put right",
}
"""The kinds of things that a rebuild restores and counts, each with its meaning.

The counts of workflows and jobs are exact where `Rebuilt.compared` is true, else lower bounds.
"""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """The result of a rebuild: the number of shards, and of restored queues, tasks, workflows and jobs."""

    shards: int
    counts: dict[str, int]
    """The number of restored things by kind; see `KINDS`."""
    compared: bool = True
    """Whether all jobs of RQ were compared; if not, more jobs may have been restored than are counted."""


async def rebuild(broker: Broker) -> Rebuilt:
    """Declare missing queues, have dispatchers publish lost tasks and mend RQ's jobs, shard by shard; return counts.

    A task that was begun is executed again only where the broker is not the one that the shard knew.

    Raises:
        ControlPlaneRequired: when no dispatcher answers.
        BrokerUnavailable: when the broker does not answer; retryable.
    """
    clock = SystemClock()
    occasion = clock.new_id()
    queues = await declare_missing(broker, base_topology())
    async with asking(broker, clock, name=f"rebuild-{occasion}") as control:
        status = await control.ask(Verb.STATUS, {})
        counts: Counter[str] = Counter(queues=queues)
        compared = True
        for row in status["shards"]:
            answer = await control.ask(Verb.REBUILD, {"shard": row["shard"], "occasion": occasion})
            counts.update({kind: int(answer.get(kind, 0)) for kind in KINDS})
            compared &= answer.get("compared", True)
    return Rebuilt(len(status["shards"]), {kind: counts[kind] for kind in KINDS}, compared)
