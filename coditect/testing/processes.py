"""The simulated processes of a fleet under test, and the actions on them."""

from __future__ import annotations

import asyncio
from itertools import count

from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.errors import NotFound
from coditect.model.capability import nearest_names
from coditect.model.ids import AgentId
from coditect.testing.process import Program, State, VirtualProcess
from coditect.testing.schedule import Actor, Schedule

SILENCE_SECONDS = 10.0
"""The time without a sign of life, two connection heartbeats of 5 s, after which the broker gives a connection up."""
_END_SECONDS = 5.0
_END_ROUNDS = 3


class VirtualProcesses:
    """The simulated processes of a fleet; an action takes a process's id, or a name for all processes of that name."""

    def __init__(self, server: MemoryServer, schedule: Schedule) -> None:
        self._server = server
        self._schedule = schedule
        self._processes: list[VirtualProcess] = []
        self._numbers: dict[str, count[int]] = {}

    @property
    def processes(self) -> tuple[VirtualProcess, ...]:
        """Every simulated process that ever started, in the order of the starts."""
        return tuple(self._processes)

    async def start(self, name: str, program: Program) -> VirtualProcess:
        """Start a new simulated process, and return it when it is ready for work."""
        number = next(self._numbers.setdefault(name, count(1)))
        id_ = AgentId(f"{name}-{number}")
        process = VirtualProcess(id_, name, MemoryBroker(self._server, name=id_), Actor(id_), program)
        self._processes.append(process)
        await process.start()
        return process

    def kill(self, target: str) -> tuple[VirtualProcess, ...]:
        """Kill simulated processes without warning; see `TestFleet.kill`."""
        return tuple(self._kill(process) for process in self.living(target))

    def _kill(self, process: VirtualProcess) -> VirtualProcess:
        self._schedule.stop(process.actor)
        process.state = State.KILLED
        self._heard_of(process)
        process.broker.vanish()
        return process

    def pause(self, target: str) -> tuple[VirtualProcess, ...]:
        """Pause simulated processes until `resume`; see `TestFleet.pause`."""
        paused = tuple(one for one in self.living(target) if one.state is not State.PAUSED)
        for process in paused:
            self._schedule.stop(process.actor)
            process.state = State.PAUSED
            process.silence = asyncio.get_running_loop().call_later(SILENCE_SECONDS, process.broker.drop)
        return paused

    def resume(self, target: str) -> tuple[VirtualProcess, ...]:
        """Let paused simulated processes go on; see `TestFleet.resume`."""
        resumed = tuple(one for one in self.living(target) if one.state is State.PAUSED)
        for process in resumed:
            process.state = State.RUNNING
            self._heard_of(process)
            self._schedule.go_on(process.actor)
        return resumed

    @staticmethod
    def _heard_of(process: VirtualProcess) -> None:
        if process.silence is not None:
            process.silence.cancel()
            process.silence = None

    async def restart(self, target: str) -> tuple[VirtualProcess, ...]:
        """Start simulated processes again under fresh ids; see `TestFleet.restart`."""
        former = self._known(target)
        for process in former:
            if process.lives:
                self._kill(process)
        latest = [one for one in former if not one.replaced]
        started = []
        for process in latest:
            process.replaced = True
            started.append(await self.start(process.name, process.program))
        return tuple(started)

    async def drain(self, target: str) -> tuple[VirtualProcess, ...]:
        """Drain simulated processes, and wait for their end; see `TestFleet.drain`."""
        draining = self.living(target)
        for process in draining:
            process.drain.set()
        await asyncio.wait([one.work for one in draining if one.work is not None])
        return draining

    def living(self, target: str | None = None) -> tuple[VirtualProcess, ...]:
        """Return the living processes with the given name or id; without a name or id, return all living processes.

        Raises:
            NotFound: when no process of that name or id lives.
        """
        if target is None:
            return tuple(one for one in self._processes if one.lives)
        living = tuple(one for one in self._known(target) if one.lives)
        if not living:
            raise NotFound(
                "No process of this name or id lives any more", given=target, fix=f"await fleet.restart({target!r})"
            )
        return living

    def _known(self, target: str) -> tuple[VirtualProcess, ...]:
        known = tuple(one for one in self._processes if target in (one.id, one.name))
        if not known:
            names = {one.id for one in self._processes} | {one.name for one in self._processes}
            raise NotFound(
                "The fleet has no process of this name or id",
                given=target,
                nearest=nearest_names(target, names),
                fix="name an agent of the fleet, or one of its processes, such as fleet.agents[0].id",
            )
        return known

    async def end(self) -> None:
        """Kill all living processes, and then end their coroutines, which cannot reach any server any more."""
        for process in self.living():
            self._kill(process)
        actors = [process.actor for process in self._processes]
        for _ in range(_END_ROUNDS):
            left = [task for actor in actors for task in actor.tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            for actor in actors:
                self._schedule.go_on(actor)
            await asyncio.wait(left, timeout=_END_SECONDS)
        for actor in actors:
            self._schedule.stop(actor)
