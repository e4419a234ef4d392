"""The locks of agents that died, also of those that died before a dispatcher owned the shard of locks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from coditect.aio.supervisor import Supervisor
from coditect.model.ids import AgentId
from coditect.wire.control import Verb
from dispatcher.ledger.commands import Asked, Command
from dispatcher.liveness.monitor import Monitor
from dispatcher.ports import Ports
from dispatcher.recovery.failover import LockHolders
from dispatcher.shards.completions import Settle
from dispatcher.shards.worker import ShardWorker
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time

GONE, BACK = AgentId("worker-gone"), AgentId("worker-back")


@dataclass
class Keeper:
    """The worker of the shard of locks, which releases a dead agent's locks in so many answers, or is closed."""

    answers: int = 1
    asked: list[Command] = field(default_factory=list)

    def put(self, command: Command, settle: Settle) -> None:
        self.asked.append(command)
        if self.answers:
            settle.done({"released": 1, "more": len(self.asked) < self.answers})
        else:
            settle.undone()


@dataclass
class Seen:
    """A monitor that found one agent dead."""

    suspects: list[str] = field(default_factory=list)

    def is_gone(self, agent: AgentId) -> bool:
        return agent in (GONE, BACK)

    def suspect(self, names: Iterable[str]) -> None:
        self.suspects += names


class Pages:
    """A store that lists who holds locks, a page at a time."""

    def __init__(self, *pages: list[str]) -> None:
        self._pages = iter(pages)

    async def read(self, _: Callable[..., Any]) -> list[str]:
        return next(self._pages, [])


def holders(background: Supervisor, *pages: list[str], is_gone: Callable[[AgentId], bool] | None = None) -> LockHolders:
    ports = cast(Ports, SimpleNamespace(background=background, database=Pages(*pages)))
    return LockHolders(ports, is_gone=is_gone or Seen().is_gone)


def released(keeper: Keeper) -> list[str]:
    """Whose locks the keeper was asked to release."""
    asked = [one for one in keeper.asked if isinstance(one, Asked) and one.verb is Verb.LOCK_RELEASE]
    assert len(asked) == len(keeper.asked)
    return [one.body["agent"] for one in asked]


@in_virtual_time
async def test_new_owner_has_all_examined_once_and_releases_what_a_dead_agent_held_before() -> None:
    keeper, monitor = Keeper(), Seen()
    async with Supervisor() as background:
        found = holders(background, ["worker-a", "worker-b"], ["worker-c"])
        found.release(None, GONE)
        found.release(None, BACK)
        for owned in (None, keeper, keeper):
            found.look(cast(ShardWorker | None, owned), cast(Monitor, monitor), frozenset({BACK}))
        await eventually(lambda: len(background) == 0)

    assert released(keeper) == [GONE]
    assert monitor.suspects == ["worker-a", "worker-b", "worker-c"]


@in_virtual_time
async def test_agent_that_counts_as_dead_and_is_not_cut_off_yet_keeps_its_locks() -> None:
    keeper = Keeper()
    async with Supervisor() as background:
        holders(background, [GONE]).look(cast(ShardWorker, keeper), cast(Monitor, Seen()), frozenset())
        await eventually(lambda: len(background) == 0)

    assert released(keeper) == []


@in_virtual_time
async def test_all_locks_of_a_dead_agent_are_released_however_many_they_are() -> None:
    keeper = Keeper(answers=3)
    async with Supervisor() as background:
        holders(background).release(cast(ShardWorker, keeper), GONE)
        await eventually(lambda: len(background) == 0)

    assert released(keeper) == [GONE] * 3


@in_virtual_time
async def test_agent_that_is_back_keeps_what_it_acquired_since() -> None:
    keeper = Keeper(answers=3)
    async with Supervisor() as background:
        found = holders(background, is_gone=lambda _: len(keeper.asked) < 2)
        found.release(cast(ShardWorker, keeper), GONE)
        await eventually(lambda: len(background) == 0)

    assert released(keeper) == [GONE] * 2


@in_virtual_time
async def test_locks_whose_shard_moves_amid_their_release_are_released_when_it_is_back() -> None:
    closed, keeper = Keeper(answers=0), Keeper()
    async with Supervisor() as background:
        found = holders(background)
        found.release(cast(ShardWorker, closed), GONE)
        await eventually(lambda: len(background) == 0)
        found.look(cast(ShardWorker, keeper), cast(Monitor, Seen()), frozenset())
        await eventually(lambda: len(background) == 0)

    assert (released(closed), released(keeper)) == ([GONE], [GONE])
