"""Faults: which ones a seed draws, how the nemesis carries them out, what they met, and when a run passes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any, cast

import pytest

from chaos.checks.check import CheckResult
from chaos.checks.coverage import FEWEST_PER_SECOND, FaultCoverage, Toll, toll
from chaos.checks.history_index import HistoryIndex
from chaos.faults.network import MANNERS, RemotePort
from chaos.faults.schedule import (
    AGENT_KILL,
    AGENT_STOP,
    BOTH_WAYS,
    BROKER_KILL,
    BROKER_PART,
    BROKER_STOP,
    BROKER_WIPE,
    DEAF,
    DISPATCHER_STOP,
    KINDS,
    MUTE,
    QUEUE_STOP,
    REDIS_PART,
    SLOW,
    STORE_KINDS,
    WEIGHTS,
    Fault,
    kinds_with,
    lone,
    schedule,
)
from chaos.history import HistoryEntry, Type
from chaos.nemesis import Nemesis
from chaos.run import PROVING_SECONDS, RunOrder, RunVerdict
from coditect.aio.network import BOTH, NetworkPath, Way
from coditect.errors import RegistryUnavailable
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import LEASE_SECONDS
from dispatcher.ledger.ownership.leases import TTL_MS
from tests.unit.broker.virtual_time import in_virtual_time


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


IDLE = CheckResult("DAG order", "a node runs after its predecessors", 0)
BUSY = CheckResult("nothing lost", "accepted work ends", 10)


def verdict(order: RunOrder) -> RunVerdict:
    hits = tuple(FaultCoverage(kind, 40, 30, 90) for kind in order.kinds)
    return RunVerdict(order, (BUSY, IDLE), Toll(hits, order.seconds), work=10, nodes=10, executions=10)


def test_long_run_of_all_faults_fails_when_a_checker_had_nothing_to_check() -> None:
    found = verdict(RunOrder(1, PROVING_SECONDS, Path("run")))

    assert found.kept
    assert (found.passed, found.objections) == (False, ("DAG order had nothing to check",))
    assert found.lines()[-1] == "proves nothing: DAG order had nothing to check"


@pytest.mark.parametrize(
    ("mutant", "broken", "caught"),
    [("skip_fence", "no stale write", True), ("skip_fence", "nothing lost", False), ("", "no stale write", False)],
)
def test_mutant_is_caught_by_who_looks_for_it_and_not_by_another_failure(
    mutant: str, broken: str, caught: bool
) -> None:
    checks = (CheckResult(broken, "", 1, ("it was broken",)), BUSY)
    order = RunOrder(1, PROVING_SECONDS, Path("run"), mutant=mutant)

    assert RunVerdict(order, checks, Toll((), 60.0), work=10, nodes=10, executions=10).caught == caught


@pytest.mark.parametrize(("seconds", "kinds"), [(PROVING_SECONDS - 1, tuple(KINDS)), (PROVING_SECONDS, (AGENT_KILL,))])
def test_short_run_and_one_of_few_faults_may_leave_a_checker_without_work(
    seconds: float, kinds: tuple[str, ...]
) -> None:
    found = verdict(RunOrder(1, seconds, Path("run"), kinds=kinds))

    assert found.passed


CUT = {BOTH_WAYS: BOTH, MUTE: (Way.TO_SERVER,), DEAF: (Way.TO_CLIENT,), SLOW: ()}


@pytest.mark.parametrize("manner", MANNERS)
def test_each_manner_cuts_its_ways(manner: str) -> None:
    path = NetworkPath()

    MANNERS[manner](path, Random(0))

    assert (path.cut, path.is_open) == (frozenset(CUT[manner]), False)


@pytest.mark.parametrize(("manner", "done"), [(BOTH_WAYS, 0), (MUTE, 0), (DEAF, 1)])
@in_virtual_time
async def test_call_over_a_cut_path_is_refused_and_was_done_if_only_its_answer_is_lost(manner: str, done: int) -> None:
    registry, path = MemoryRegistry(), NetworkPath()
    remote = RemotePort(registry, path, RegistryUnavailable)
    MANNERS[manner](path, Random(0))

    with pytest.raises(RegistryUnavailable):
        await remote.next_turn("name")
    path.heal()

    assert await remote.next_turn("name") == done + 1


@in_virtual_time
async def test_call_whose_path_is_healed_in_time_is_answered() -> None:
    path = NetworkPath()
    remote = RemotePort(MemoryRegistry(), path, RegistryUnavailable)
    path.cut_off()
    calling = asyncio.create_task(remote.next_turn("name"))
    await asyncio.sleep(0.5)

    path.heal()

    assert await calling == 1


@dataclass
class FakePost:
    """A process with its paths."""

    name: str
    settled: bool = True
    busy: bool = False
    alive: bool = True
    life: str = "agent-1#7"
    log: str = "The broker cannot be reached"
    crashed: bool = False
    drained: bool = False
    paths: dict[str, NetworkPath] = field(default_factory=lambda: {"broker": NetworkPath(), "redis": NetworkPath()})

    def start(self) -> None:
        self.alive = True


class FakeStage:
    """Two processes."""

    def __init__(self) -> None:
        self.posts = [FakePost("agent-1"), FakePost("dispatcher-1")]

    def of(self, role: str) -> list[FakePost]:
        return [post for post in self.posts if post.name.startswith(role)]


def notes_of(stage: FakeStage, seen: list[tuple[str, str, str, bool]]) -> Callable[..., None]:
    """Notes who was parted how, and whether the path that the kind names is the one that is broken a moment later."""

    def note(type_: Type, f: str, key: str, **val: Any) -> None:
        if type_ is Type.INVOKE:
            (post,) = (one for one in stage.posts if one.name == key)
            path = post.paths[val["kind"].partition(".")[0]]
            look = lambda: seen.append((key, val["kind"], val["manner"], not path.is_open))  # noqa: E731
            asyncio.get_running_loop().call_later(0.1, look)

    return note


@in_virtual_time
async def test_every_process_is_parted_from_each_server_in_each_manner_and_healed() -> None:
    stage, seen = FakeStage(), list[tuple[str, str, str, bool]]()
    nemesis = Nemesis(cast(Any, stage), notes_of(stage, seen), cast(Any, None))
    kinds = (BROKER_PART, REDIS_PART)
    drawn = [(kind, number / 8) for kind in kinds for number in range(8)]

    await nemesis.run(Fault(2.0 * number, kind, draw, 1.0) for number, (kind, draw) in enumerate(drawn))

    names = [post.name for post in stage.posts]
    assert sorted(seen) == sorted((name, kind, manner, True) for name in names for kind in kinds for manner in MANNERS)
    assert all(path.is_open for post in stage.posts for path in post.paths.values())


@pytest.mark.parametrize(("how", "noted"), [("", "trouble"), ("drained", "restart"), ("crashed", "crash")])
@in_virtual_time
async def test_process_that_ends_by_itself_is_noted_and_started_again_unless_a_fault_acts_on_it(
    how: str, noted: str
) -> None:
    stage, ends = FakeStage(), list[tuple[str, str]]()
    ended, hit = stage.posts
    ended.alive = hit.alive = False
    hit.busy, hit.settled = True, False
    if how:
        setattr(ended, how, True)

    def note(type_: Type, f: str, key: str, **facts: Any) -> None:
        if type_ is Type.INFO:
            ends.append((f, facts["life"]))

    nemesis = Nemesis(cast(Any, stage), note, cast(Any, None))
    async with nemesis.keeping():
        await nemesis.run([Fault(2.0, BROKER_PART, 0.0, 1.0)])

    assert (ended.alive, hit.alive, ends) == (True, False, [(noted, ended.life)])


class SlowServers:
    """A broker that takes half a minute to come back."""

    def __init__(self) -> None:
        self.kills = 0

    async def kill_broker(self) -> None:
        self.kills += 1

    async def start_broker(self) -> None:
        await asyncio.sleep(30)


class SlowStage(FakeStage):
    """A testbed whose processes note what they are sent."""

    def __init__(self) -> None:
        super().__init__()
        self.servers = SlowServers()

    async def command_broker(self, _: str) -> None:
        return None


@pytest.mark.parametrize(("wait", "brokers", "agents", "seconds"), [(True, 5, 0, 150), (False, 1, 4, 31)])
@in_virtual_time
async def test_faults_of_a_server_that_is_down_wait_or_hit_an_agent_in_its_place(
    wait: bool, brokers: int, agents: int, seconds: float
) -> None:
    stage, hits = SlowStage(), list[str]()

    def note(type_: Type, _: str, key: str, **__: Any) -> None:
        if type_ is Type.INVOKE:
            hits.append(key)

    class Killed(Nemesis):
        async def _hit(self, fault: Fault) -> None:
            hits.append(fault.kind)

    nemesis, begun = Killed(cast(Any, stage), note, cast(Any, None), wait=wait), asyncio.get_running_loop().time()
    await nemesis.run(Fault(float(number), BROKER_KILL, 0.0, 0.0) for number in range(5))

    assert (stage.servers.kills, hits.count("agent.kill")) == (brokers, agents)
    assert asyncio.get_running_loop().time() - begun <= seconds
