"""The nemesis of a simulated fleet, which injects the faults of real runs and some that only a simulation has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from chaos.faults.network import MANNERS
from chaos.faults.schedule import PART_SECONDS
from chaos.faults.strangers import Strangers
from chaos.history import Note, Type
from chaos.load.work import CAPABILITY
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect.aio.network import NetworkPath
from coditect.errors import NotFound
from coditect.model.capability import Priority
from coditect.testing import TestFleet
from coditect.testing.process import VirtualProcess
from coditect.wire import routing

STOP_SECONDS = (0.5, 8.0)
AWAY_SECONDS = (0.1, 3.0)
STALL_SECONDS = (0.1, 4.0)
BACK_SECONDS = 1.2
"""The time after which a dead process is started again, unless another fault comes earlier."""
REVIVED_EVERY_SECONDS = 1.0
"""The pause between two looks for agents that ended by themselves."""
MOST_CONFIRMS = 10
CONFIRM_SECONDS = 0.1
AGENT = "agent"
QUEUES = (
    *(routing.task_queue(CAPABILITY, level) for level in Priority),
    *(name(shard) for name in (routing.results_queue, routing.control_queue) for shard in range(2)),
)
EXCHANGES = (routing.SUBMIT, routing.REPLIES, routing.RESULTS, routing.CONTROL)
"""The exchanges that a fault may delete, without those by which retries come back.

A message that finds `coditect.retry.back` missing waits for the broker's three minutes; one that finds `coditect.tasks`
without its bindings lies in `unrouted`, and is answered so.
"""


def post_of_process(process: VirtualProcess) -> str:
    """Return the name of a process in the history: an agent's id, or a dispatcher's name, which restarts keep."""
    return process.id if process.name == AGENT else process.name


@dataclass(frozen=True, slots=True)
class Target:
    """The targets of a simulation's faults: the fleet, the stand-in for RQ, the dispatchers, and the network paths."""

    fleet: TestFleet
    graph: MemoryTaskGraph
    dispatchers: Sequence[str]
    lives: dict[str, int]
    """The number of the current restart of each dispatcher, by name."""
    paths: Mapping[str, Mapping[str, NetworkPath]]
    """The network paths of each process to its servers, by the servers' names."""


class SimulatedNemesis:
    """The injector of one seed's faults into a simulated fleet."""

    def __init__(self, target: Target, note: Note, seeded_of: Callable[[str], Random], wiped: float) -> None:
        """Prepare the faults; `wiped` is the share of the broker's restarts at which its messages are lost."""
        self._target = target
        self._fleet = target.fleet
        self._note = note
        self._seeded, self._network = seeded_of("faults"), seeded_of("network")
        self._wiped = wiped
        self._starting: list[asyncio.Task[Any]] = []
        self._broker_away = False
        self._terminated = set[str]()
        self.faults = 0

    async def run(
        self, kinds: Sequence[str], seconds: float, between_seconds: tuple[float, float], strangers: Strangers
    ) -> None:
        """Inject random faults with pauses between until the time is over, and restart dead processes."""
        acts = [ACTS[kind] for kind in kinds]
        now = asyncio.get_running_loop().time
        end = now() + seconds
        async with asyncio.TaskGroup() as group:
            while now() + (pause := self._seeded.uniform(*between_seconds)) < end:
                await asyncio.sleep(min(pause, BACK_SECONDS))
                self.revive()
                await asyncio.sleep(pause - min(pause, BACK_SECONDS))
                for _ in range(self._seeded.randrange(20)):
                    await asyncio.sleep(0)  # somewhere within the instant
                self.revive()
                if acts:
                    group.create_task(self._seeded.choice(acts)(self, strangers))

    def end(self) -> None:
        """Cancel the restarts of processes that are not ready yet."""
        for starting in self._starting:
            starting.cancel()

    # -- processes --------------------------------------------------------------------------------------

    def revive(self) -> None:
        """Restart the dead dispatchers and agents in the background."""
        living = {process.name for process in self._fleet.processes if process.lives}
        for name in self._target.dispatchers:
            if name not in living:
                self._restart(name, name)
        dead = [one for one in self._fleet.processes if one.name == AGENT and not one.lives and not one.replaced]
        for process in dead:
            self._restart(process.id, process.id)

    def _restart(self, target: str, post: str) -> None:
        self._starting.append(asyncio.ensure_future(self._fleet.restart(target)))
        self._note(Type.OK, "restart" if post in self._terminated else "kill", post)

    def terminate(self, agent: str) -> bool:
        """Send SIGTERM to the process of the handler that asks for it, and tell whether its agent ends by that."""
        process = next(one for one in self._fleet.processes if one.id == agent)
        ends = process.terminate()
        if ends and agent not in self._terminated:
            self._terminated.add(agent)
            self._begin("restart", agent, "agent.end", life=agent)
        return ends

    async def keep_reviving(self) -> None:
        """Restart agents that end by themselves, also after the last fault."""
        while True:
            await asyncio.sleep(REVIVED_EVERY_SECONDS)
            self.revive()

    def kill(self, name: str, kind: str) -> None:
        """Kill one process by its id, or all processes of an agent or dispatcher by name, and record the fault."""
        with suppress(NotFound):
            for process in self._fleet.kill(name):
                self._begin("kill", post_of_process(process), kind)
                if process.name == name:
                    self._target.lives[name] += 1

    async def _stop(self, target: str, kind: str) -> None:
        with suppress(NotFound):
            for process in self._fleet.pause(target):
                post = post_of_process(process)
                self._begin("stop", post, kind)
                await asyncio.sleep(self._seeded.uniform(*STOP_SECONDS))
                with suppress(NotFound):
                    self._fleet.resume(process.id)
                self._note(Type.OK, "stop", post)

    async def _part(self, post: str) -> None:
        """Cut off or slow one process's path to one server for a while."""
        paths = self._target.paths.get(post)
        if paths is None:
            return  # it waits for its first connection
        server, manner = self._network.choice([*paths]), self._network.choice([*MANNERS])
        self._begin("part", post, f"{server}.part", manner=manner)
        MANNERS[manner](paths[server], self._network)
        await asyncio.sleep(self._seeded.uniform(*PART_SECONDS))
        paths[server].heal()
        self._note(Type.OK, "part", post)

    async def _kill_agent(self, _: Strangers) -> None:
        if agents := self._agents:
            self.kill(self._seeded.choice(agents), "agent.kill")

    async def _stop_agent(self, _: Strangers) -> None:
        if agents := self._agents:
            await self._stop(self._seeded.choice(agents), "agent.stop")

    async def _part_agent(self, _: Strangers) -> None:
        if agents := self._agents:
            await self._part(self._seeded.choice(agents))

    @property
    def _agents(self) -> list[str]:
        """The ids of the living agents that faults may act on."""
        return [one.id for one in self._fleet.agents if one.name == AGENT]

    async def _kill_dispatcher(self, _: Strangers) -> None:
        self.kill(self._seeded.choice(self._target.dispatchers), "dispatcher.kill")

    async def _stop_dispatcher(self, _: Strangers) -> None:
        await self._stop(self._seeded.choice(self._target.dispatchers), "dispatcher.stop")

    async def _part_dispatcher(self, _: Strangers) -> None:
        await self._part(self._seeded.choice(self._target.dispatchers))

    # -- servers ----------------------------------------------------------------------------------------

    def _begin(self, act: str, post: str, kind: str, **facts: str) -> None:
        self.faults += 1
        self._note(Type.INVOKE, act, post, kind=kind, **facts)

    async def _wipe_redis(self, _: Strangers) -> None:
        self._begin("wipe", "redis", "redis.wipe")
        self._fleet.wipe_registry()
        self._target.graph.wipe()
        self._note(Type.OK, "wipe", "redis")

    async def _redis_away(self, _: Strangers) -> None:
        self._begin("kill", "redis", "redis.kill")
        self._fleet.registry.failing = self._target.graph.failing = True
        await asyncio.sleep(self._seeded.uniform(*AWAY_SECONDS))
        self._fleet.registry.failing = self._target.graph.failing = False
        self._note(Type.OK, "kill", "redis")

    async def _drop_connections(self, _: Strangers) -> None:
        self._begin("cut", "broker", "broker.cut")
        self._fleet.drop_connections()
        self._note(Type.OK, "cut", "broker")

    async def _restart_broker(self, _: Strangers) -> None:
        if self._broker_away:
            return
        self._broker_away = True
        wiped = self._seeded.random() < self._wiped
        act = "wipe" if wiped else "kill"
        self._begin(act, "broker", f"broker.{act}")
        self._fleet.server.stop()
        await asyncio.sleep(self._seeded.uniform(*AWAY_SECONDS))
        self._fleet.server.start(lose_messages=wiped)
        self._broker_away = False
        self._note(Type.OK, act, "broker")

    async def _stall_broker(self, _: Strangers) -> None:
        """Block the broker for a while: it accepts and confirms no message, and goes on delivering."""
        if self._broker_away:
            return
        self._broker_away = True
        self._begin("stop", "broker", "broker.stop")
        self._fleet.server.block()
        await asyncio.sleep(self._seeded.uniform(*STALL_SECONDS))
        self._fleet.server.unblock()
        self._broker_away = False
        self._note(Type.OK, "stop", "broker")

    async def _lose_confirms(self, _: Strangers) -> None:
        """Make the broker accept messages without confirming them to their publishers, up to ten times."""
        self._begin("cut", "broker", "broker.mute")
        for _lost in range(self._seeded.randint(1, MOST_CONFIRMS)):
            self._fleet.server.lose_next_confirms(1)
            await asyncio.sleep(CONFIRM_SECONDS)
        self._note(Type.OK, "cut", "broker")

    async def _silence_a_queue(self, _: Strangers) -> None:
        """Make one queue's leader hang for a while, while all other queues go on."""
        names = [one for one in QUEUES if self._fleet.server.find(one) is not None]
        if not names or self._broker_away:
            return
        queue = self._seeded.choice(names)
        self._begin("stop", queue, "queue.stop")
        self._fleet.server.silence(queue)
        await asyncio.sleep(self._seeded.uniform(*PART_SECONDS))
        self._fleet.server.end_silence(queue)
        self._note(Type.OK, "stop", queue)

    async def _delete_an_exchange(self, _: Strangers) -> None:
        """Delete an exchange with all of its bindings, which their owners must declare again."""
        self._begin("cut", "broker", "exchange.delete")
        self._fleet.server.exchanges.delete(self._seeded.choice(EXCHANGES))
        self._note(Type.OK, "cut", "broker")

    async def _strangers(self, strangers: Strangers) -> None:
        self._begin("send", "stranger", "stranger.send")
        await strangers.send()
        self._note(Type.OK, "send", "stranger")

    async def _requests(self, strangers: Strangers) -> None:
        self._begin("send", "request", "request.send")
        await strangers.repeat()
        self._note(Type.OK, "send", "request")


Act = Callable[[SimulatedNemesis, Strangers], Coroutine[Any, Any, None]]
ACTS: Mapping[str, Act] = {
    "agent.kill": SimulatedNemesis._kill_agent,
    "agent.stop": SimulatedNemesis._stop_agent,
    "agent.part": SimulatedNemesis._part_agent,
    "dispatcher.kill": SimulatedNemesis._kill_dispatcher,
    "dispatcher.stop": SimulatedNemesis._stop_dispatcher,
    "dispatcher.part": SimulatedNemesis._part_dispatcher,
    "redis.wipe": SimulatedNemesis._wipe_redis,
    "redis.kill": SimulatedNemesis._redis_away,
    "broker.cut": SimulatedNemesis._drop_connections,
    "broker.kill": SimulatedNemesis._restart_broker,
    "broker.stop": SimulatedNemesis._stall_broker,
    "broker.mute": SimulatedNemesis._lose_confirms,
    "queue.stop": SimulatedNemesis._silence_a_queue,
    "exchange.delete": SimulatedNemesis._delete_an_exchange,
    "stranger.send": SimulatedNemesis._strangers,
    "request.send": SimulatedNemesis._requests,
}
"""The kinds of faults of a simulated fleet, each with the method that injects it.

A killed broker may lose its data, too; a partition is recorded with the server's name: `broker.part`, `redis.part`,
`store.part`.
"""
KINDS = tuple(kind for kind in ACTS for _ in range(2 if kind.startswith(("agent.", "dispatcher.")) else 1))
"""The kinds of faults to draw from; those of agents and dispatchers stand twice, and so are twice as frequent."""
BROKER_KINDS = ("broker.kill", "broker.cut", "broker.mute", "broker.stop")
"""The kinds of faults by which living agents lose their deliveries."""
