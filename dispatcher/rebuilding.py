"""Rebuilding on demand: everything of one shard that stands outside of the ledger is made again from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coditect.broker.topology import backbone, control_plane, notices, shard_queues
from coditect.model.workflow.states import TaskState
from dispatcher.commands import Show
from dispatcher.desk import Desk
from dispatcher.layers.keyspace import FLIGHTS, LIVE, RUNS, STATUSES
from dispatcher.layers.ledger.rows import NodeRow, RunRow
from dispatcher.markers import Markers
from dispatcher.ports import Ports
from dispatcher.settling import Answer
from dispatcher.store.transaction import Reads


@dataclass(frozen=True, slots=True)
class Standing:
    """What a shard has outside of the ledger, as the ledger knows it."""

    published: int
    working: int
    workflows: tuple[str, ...]
    jobs: int


def standing(tr: Reads, shard: int) -> Standing:
    """Costs as much as is under way, and a row for each live workflow."""
    states = []
    for key, _ in tr.get_range(*FLIGHTS.range((shard,))):
        row = tr.get(STATUSES.pack(FLIGHTS.unpack(key)[1:]))
        if row is not None:
            states.append(NodeRow.unpack(row).state)
    workflows = tuple(str(LIVE.unpack(key)[1]) for key, _ in tr.get_range(*LIVE.range((shard,))))
    rows = (tr.get(RUNS.pack((workflow,))) for workflow in workflows)
    jobs = sum(sum(RunRow.unpack(row).counts.values()) for row in rows if row is not None)
    return Standing(states.count(TaskState.PUBLISHED), states.count(TaskState.WORKING), workflows, jobs)


async def rebuild(ports: Ports, desk: Desk, markers: Markers, occasion: str) -> dict[str, Any]:
    """Declares the queues, publishes anew what is under way, shows RQ every live workflow; what that is, by kind.

    The same occasion again publishes nothing more. Raises: BrokerUnavailable; what the store raises.
    """
    ours = control_plane(quorum=ports.quorum) + shard_queues(desk.shard, quorum=ports.quorum)
    topology = backbone() + ours + notices()
    await ports.broker.declare(topology)
    found = await ports.database.read(lambda tr: standing(tr, desk.shard))
    noted: Answer[int] = Answer()
    known, marker = desk.marker, await markers.of_broker(desk.marker)
    desk.rebuild(marker, occasion, noted, kept=marker == known and await markers.is_there(marker))
    await noted.future
    for workflow in found.workflows:
        desk.put(Show(workflow))
    return {
        "shard": desk.shard,
        "marker": desk.marker,
        "queues": len(topology.queues),
        "published": found.published,
        "working": found.working,
        "workflows": len(found.workflows),
        "jobs": found.jobs if desk.showing is not None else 0,
    }
