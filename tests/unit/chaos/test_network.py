"""How a process is parted from Redis, in the simulation and by a proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import pytest

from chaos.faults.network import MANNERS, RemotePort
from chaos.faults.schedule import BOTH_WAYS, BROKER_KILL, BROKER_PART, DEAF, MUTE, REDIS_PART, SLOW, Fault
from chaos.history import Type
from chaos.nemesis import Nemesis
from coditect.aio.network import BOTH, NetworkPath, Way
from coditect.errors import RegistryUnavailable
from coditect.registry.memory import MemoryRegistry
from tests.unit.broker.virtual_time import in_virtual_time

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
