from __future__ import annotations

from statistics import quantiles

import pytest

from chaos.checks.coverage import FEWEST_PER_SECOND, toll
from chaos.checks.history_index import HistoryIndex
from chaos.faults.schedule import (
    AGENT_STOP,
    BROKER_KILL,
    BROKER_STOP,
    BROKER_WIPE,
    DISPATCHER_STOP,
    KINDS,
    QUEUE_STOP,
    STORE_KINDS,
    WEIGHTS,
    kinds_with,
    lone,
    schedule,
)
from chaos.history import HistoryEntry, Type
from coditect.registry.port import LEASE_SECONDS
from dispatcher.ledger.ownership.leases import TTL_MS


@pytest.mark.parametrize("seed", range(20))
def test_seed_alone_decides_what_is_broken_and_every_kind_comes(seed: int) -> None:
    faults = schedule(seed, 60.0, tuple(KINDS))

    assert faults == schedule(seed, 60.0, tuple(KINDS))
    assert {fault.kind for fault in faults} == set(KINDS)
    assert {*KINDS, *STORE_KINDS} == {*WEIGHTS, BROKER_KILL, BROKER_WIPE, BROKER_STOP, QUEUE_STOP}
    assert all(0 < fault.at_seconds < 60 for fault in faults)
    assert len(faults) / 60 > 1.5 * FEWEST_PER_SECOND


def test_schedule_is_drawn_of_its_kinds_by_its_seed() -> None:
    assert schedule(1, 30.0, tuple(KINDS)) != schedule(2, 30.0, tuple(KINDS))

    assert {fault.kind for fault in schedule(1, 60.0, ("redis.wipe", "broker.kill"))} == {"redis.wipe", "broker.kill"}
    assert schedule(1, 60.0, ()) == []

    faults = schedule(1, 60.0, tuple(kinds_with(foundationdb=True)))

    assert {fault.kind for fault in faults} == {*KINDS, *STORE_KINDS}
    assert not STORE_KINDS.keys() & kinds_with(foundationdb=False).keys()


@pytest.mark.parametrize("kinds", [(), ("redis.wipe",), tuple(KINDS)])
def test_fault_that_comes_alone_is_one_of_the_kinds(kinds: tuple[str, ...]) -> None:
    found = {fault.kind for seed in range(200) for fault in lone(seed, kinds)}

    assert found == set(kinds)
    assert lone(1, kinds) == lone(1, kinds)


@pytest.mark.parametrize(("kind", "lease_seconds"), [(AGENT_STOP, LEASE_SECONDS), (DISPATCHER_STOP, TTL_MS / 1000)])
def test_most_stops_are_longer_than_the_lease_and_some_are_not(kind: str, lease_seconds: float) -> None:
    lasting = [
        fault.seconds for seed in range(30) for fault in schedule(seed, 60.0, tuple(KINDS)) if fault.kind == kind
    ]

    shortest_quarter, median, _ = quantiles(lasting)

    assert min(lasting) < lease_seconds < shortest_quarter
    assert median > 1.4 * lease_seconds


RUN = [
    HistoryEntry(0.0, "client", Type.OK, "accept", "work"),
    HistoryEntry(1.0, "agent-1#7", Type.INVOKE, "execute", "work"),
    HistoryEntry(2.0, "chaos", Type.INVOKE, "kill", "agent-1", {"kind": "agent.kill"}),
    HistoryEntry(2.1, "chaos", Type.INVOKE, "stop", "agent-2", {"kind": "agent.stop"}),
    HistoryEntry(3.0, "chaos", Type.OK, "wipe", "redis", {"kind": "redis.wipe"}),
    HistoryEntry(4.0, "agent-2#9", Type.INVOKE, "execute", "work"),
    HistoryEntry(4.5, "chaos", Type.OK, "kill", "broker", {"kind": "broker.kill"}),
    HistoryEntry(5.0, "agent-2#9", Type.OK, "execute", "work"),
    HistoryEntry(6.0, "client", Type.OK, "end", "work", {"state": "completed"}),
    HistoryEntry(7.0, "chaos", Type.OK, "kill", "broker", {"kind": "broker.kill"}),
]


def test_toll_tells_which_faults_met_work_in_flight_and_what_a_run_does_not_prove() -> None:
    counted = toll(HistoryIndex(RUN), ("agent.kill", "agent.stop", "redis.wipe", "broker.kill"), seconds=8.0)

    assert [(one.kind, one.faults, one.hitting) for one in counted.kinds] == [
        ("agent.kill", 1, 1),
        ("agent.stop", 1, 0),
        ("redis.wipe", 1, 1),
        ("broker.kill", 2, 1),
    ]
    assert counted.per_second == 5 / 8

    busy = toll(HistoryIndex(RUN), ("agent.kill",), seconds=1.0)
    idle = toll(HistoryIndex(RUN), ("agent.stop", "broker.wipe"), seconds=100.0)

    assert busy.objections == ()
    assert idle.objections == (
        "agent.stop never hit work in flight",
        "broker.wipe never hit work in flight",
        "there was less than one fault in 2 s: 0.01 a second",
    )
