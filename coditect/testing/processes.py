"""All simulated processes of a fleet, and the actions on them."""

from __future__ import annotations

import asyncio
from itertools import count

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.errors import NotFound
from coditect.model.capability import nearest_names
from coditect.model.ids import AgentId
from coditect.testing.member import Program, State, VirtualProcess
from coditect.testing.schedule import Actor, Schedule

SILENCE_SECONDS = 10.0
"""The time without a sign of life, two connection heartbeats of 5 s, after which the broker gives a connection up."""
_END_SECONDS = 5.0
_END_ROUNDS = 3


class VirtualProcesses:
    """The simulated processes; each action takes the id of a process, or a name that several share."""

    def __init__(self, server: MemoryServer, schedule: Schedule) -> None:
        self._server = server
        self._schedule = schedule
        self._members: list[VirtualProcess] = []
        self._numbers: dict[str, count[int]] = {}

    @property
    def members(self) -> tuple[VirtualProcess, ...]:
        """Every process that was ever started, in that order."""
        return tuple(self._members)

    async def start(self, name: str, program: Program) -> VirtualProcess:
        """Start a new process, and return it when it is at work."""
        number = next(self._numbers.setdefault(name, count(1)))
        id_ = AgentId(f"{name}-{number}")
        member = VirtualProcess(id_, name, MemoryBroker(self._server, name=id_), Actor(id_), program)
        self._members.append(member)
        await member.start()
        return member

    def kill(self, target: str) -> tuple[VirtualProcess, ...]:
        """Kill processes; see `TestFleet.kill`."""
        return tuple(self._kill(member) for member in self.living(target))

    def _kill(self, member: VirtualProcess) -> VirtualProcess:
        self._schedule.stop(member.actor)
        member.state = State.KILLED
        self._heard_of(member)
        member.broker.vanish()
        return member

    def pause(self, target: str) -> tuple[VirtualProcess, ...]:
        """Pause processes; see `TestFleet.pause`."""
        paused = tuple(one for one in self.living(target) if one.state is not State.PAUSED)
        for member in paused:
            self._schedule.stop(member.actor)
            member.state = State.PAUSED
            member.silence = asyncio.get_running_loop().call_later(SILENCE_SECONDS, member.broker.drop)
        return paused

    def resume(self, target: str) -> tuple[VirtualProcess, ...]:
        """Resume processes; see `TestFleet.resume`."""
        resumed = tuple(one for one in self.living(target) if one.state is State.PAUSED)
        for member in resumed:
            member.state = State.RUNNING
            self._heard_of(member)
            self._schedule.go_on(member.actor)
        return resumed

    @staticmethod
    def _heard_of(member: VirtualProcess) -> None:
        if member.silence is not None:
            member.silence.cancel()
            member.silence = None

    async def restart(self, target: str) -> tuple[VirtualProcess, ...]:
        """Start processes again; see `TestFleet.restart`."""
        former = self._known(target)
        for member in former:
            if member.lives:
                self._kill(member)
        latest = [one for one in former if not one.replaced]
        started = []
        for member in latest:
            member.replaced = True
            started.append(await self.start(member.name, member.program))
        return tuple(started)

    async def drain(self, target: str) -> tuple[VirtualProcess, ...]:
        """Drain processes; see `TestFleet.drain`."""
        draining = self.living(target)
        for member in draining:
            member.drain.set()
        await asyncio.wait([one.work for one in draining if one.work is not None])
        return draining

    def living(self, target: str | None = None) -> tuple[VirtualProcess, ...]:
        """Return the living processes of this name or id; all living ones without a target.

        Raises:
            NotFound: when no process of that name or id lives.
        """
        if target is None:
            return tuple(one for one in self._members if one.lives)
        living = tuple(one for one in self._known(target) if one.lives)
        if not living:
            raise NotFound(
                "No process of this name or id lives any more", given=target, fix=f"await fleet.restart({target!r})"
            )
        return living

    def _known(self, target: str) -> tuple[VirtualProcess, ...]:
        known = tuple(one for one in self._members if target in (one.id, one.name))
        if not known:
            names = {one.id for one in self._members} | {one.name for one in self._members}
            raise NotFound(
                "The fleet has no process of this name or id",
                given=target,
                nearest=nearest_names(target, names),
                fix="name an agent of the fleet, or one of its processes, such as fleet.agents[0].id",
            )
        return known

    async def end(self) -> None:
        """Kill all living processes, and then end their coroutines, which cannot reach any server any more."""
        for member in self.living():
            self._kill(member)
        actors = [member.actor for member in self._members]
        for _ in range(_END_ROUNDS):
            left = {task for actor in actors for task in actor.tasks if not task.done()}
            if not left:
                break
            for task in left:
                task.cancel()
            for actor in actors:
                self._schedule.go_on(actor)
            await asyncio.wait(left, timeout=_END_SECONDS)
        for actor in actors:
            self._schedule.stop(actor)
