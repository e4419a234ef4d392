"""The nemesis of a run of real processes, which injects a schedule of faults and records each with its victim."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from random import Random

from chaos.faults.network import MANNERS
from chaos.faults.schedule import Fault
from chaos.faults.strangers import Strangers
from chaos.history import Note, Type
from chaos.load.work import CAPABILITY
from chaos.testbed import ChaosTestbed, Post
from coditect.local.errors import LocalError
from coditect.local.private import BROKER as BROKER_PROCESS
from coditect.local.private import REDIS as REDIS_PROCESS
from coditect.local.private import PrivateFoundationDB, PrivateProcesses
from coditect.model.capability import Priority
from coditect.wire import routing

BROKER, REDIS, STORE = "broker", "redis", "store"
QUEUES = (
    *(routing.task_queue(CAPABILITY, level) for level in Priority),
    *(name(0) for name in (routing.results_queue, routing.control_queue)),
)
"""The quorum queues whose leaders the nemesis suspends."""
ELECT = (
    "[ra:trigger_election({element(1, Queue), node()}) || "
    "Queue <- ets:tab2list(ra_state), element(2, Queue) =:= follower]."
)
"""The Erlang command that makes leaderless quorum queues elect a leader after a crash.

RabbitMQ forgets a quorum queue that was declared half a second before the crash, starts it again without a leader, and
never elects one (docs/operations.md).
"""
KEEP_SECONDS = 0.5
OTHER: Mapping[str, str] = {"agent": "dispatcher", "dispatcher": "agent"}


class Nemesis:
    """The injector of a run's faults into real processes; a victim has only one fault at a time.

    A fault of a server that is still down from another one waits until that one is over. If it does not `wait`, an
    agent is hit in the server's place: many faults a second would keep the server of a slow machine down for good.
    """

    def __init__(
        self,
        testbed: ChaosTestbed,
        note: Note,
        strangers: Strangers,
        cluster: PrivateFoundationDB | None = None,
        *,
        wait: bool = True,
    ) -> None:
        self._testbed = testbed
        self._cluster = cluster
        self._strangers = strangers
        self._note = note
        self._wait = wait
        self._turns = {name: asyncio.Lock() for name in (BROKER, REDIS, STORE)}
        self.missed = 0
        """The number of faults that found no possible victim."""

    async def run(self, faults: Iterable[Fault]) -> None:
        """Inject the faults, if they find victims, at their times; return when all are over and victims start again."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        async with asyncio.TaskGroup() as hits:
            for fault in faults:
                await asyncio.sleep(max(0.0, start + fault.at_seconds - loop.time()))
                hits.create_task(self._do(fault))

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Within the block, restart each process that ended by itself, as a supervisor does, and record its end.

        A process waits for no server for ever, and says so when it ends; or a task has asked it to end: a `restart`,
        of which the history tells whether a task did (`no_crash`). Anything else is a crash.
        """
        async with asyncio.TaskGroup() as group:
            keeper = group.create_task(self._keep())
            yield
            keeper.cancel()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_SECONDS)
            for post in (post for role in OTHER for post in self._testbed.of(role)):
                if not post.alive and not post.busy:
                    how = "crash" if post.crashed else "restart" if post.drained else "trouble"
                    self._note(Type.INFO, how, post.name, reason=post.log[-500:], life=post.life)
                    post.start()

    async def _do(self, fault: Fault) -> None:
        match fault.role:
            case "agent" | "dispatcher":
                await self._hit(fault)
            case "broker" | "redis" if fault.act == "part":
                await self._part(fault)
            case "stranger":
                self._note(Type.INVOKE, fault.act, "stranger", kind=fault.kind)
                await self._strangers.send()
                self._note(Type.OK, fault.act, "stranger")
            case "request":
                self._note(Type.INVOKE, fault.act, "request", kind=fault.kind)
                await self._strangers.repeat()
                self._note(Type.OK, fault.act, "request")
            case "redis":
                await self._serve(fault, REDIS, self._redis(fault))
            case "store" if self._cluster is not None:
                await self._serve(fault, STORE, self._store(fault, self._cluster))
            case "queue":
                await self._serve(fault, BROKER, lambda: self._silence(fault))
            case _:
                await self._serve(fault, BROKER, self._broker(fault))

    async def _hit(self, fault: Fault) -> None:
        posts = self._at_work(fault.role)
        if not posts:  # on a slow machine those who were killed are not back yet: somebody else is hit alike
            fault = replace(fault, kind=f"{OTHER[fault.role]}.{fault.act}")
            posts = self._at_work(fault.role)
        if not posts:
            self.missed += 1
            return
        post = posts[int(fault.draw * len(posts))]
        with self._noted(post, fault):
            await (self._stop(post, fault) if fault.act == "stop" else self._kill(post, fault))

    async def _part(self, fault: Fault) -> None:
        """Cut off or slow one process's connections to one server for the fault's time, by the proxy between them."""
        places = [(post, manner) for role in OTHER for post in self._at_work(role) for manner in MANNERS]
        if not places:
            self.missed += 1
            return
        post, manner = places[int(fault.draw * len(places))]
        path = post.paths[fault.role]
        with self._noted(post, fault, manner=manner):
            MANNERS[manner](path, Random(fault.draw))  # noqa: S311 - it is to be foreseen
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                path.heal()

    @contextmanager
    def _noted(self, post: Post, fault: Fault, **facts: str) -> Iterator[None]:
        post.busy = True
        self._note(Type.INVOKE, fault.act, post.name, kind=fault.kind, **facts)
        try:
            yield
        finally:
            post.busy = False
            self._note(Type.OK, fault.act, post.name)

    def _at_work(self, role: str) -> list[Post]:
        return [post for post in self._testbed.of(role) if post.settled and not post.busy]

    @staticmethod
    async def _stop(post: Post, fault: Fault) -> None:
        post.signal(signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        post.signal(signal.SIGCONT)

    @staticmethod
    async def _kill(post: Post, fault: Fault) -> None:
        post.signal(signal.SIGKILL)
        await post.end()
        await asyncio.sleep(fault.seconds)
        post.start()

    async def _serve(self, fault: Fault, name: str, act: Callable[[], Awaitable[None]]) -> None:
        if not self._wait and self._turns[name].locked():
            await self._hit(replace(fault, kind=f"agent.{fault.act}"))
            return
        async with self._turns[name]:  # a server that is on its way back is hit when it is there
            self._note(Type.INVOKE, fault.act, name, kind=fault.kind)
            try:
                await act()
            except LocalError as error:
                self._note(Type.INFO, "trouble", name, reason=str(error)[:500])
            finally:
                self._note(Type.OK, fault.act, name)

    def _redis(self, fault: Fault) -> Callable[[], Awaitable[None]]:
        servers = self._testbed.servers

        async def kill() -> None:
            await servers.kill_redis()
            await asyncio.sleep(fault.seconds)
            await servers.start_redis()

        if fault.act == "stop":
            return lambda: self._stall(servers, REDIS_PROCESS, fault.seconds)
        return servers.wipe_redis if fault.act == "wipe" else kill

    def _broker(self, fault: Fault) -> Callable[[], Awaitable[None]]:
        servers = self._testbed.servers

        async def down_and_up() -> None:
            await (servers.wipe_broker() if fault.act == "wipe" else servers.kill_broker())
            await asyncio.sleep(fault.seconds)
            await servers.start_broker()
            await self._testbed.command_broker(ELECT)

        if fault.act == "stop":
            return lambda: self._stall(servers, BROKER_PROCESS, fault.seconds)
        return down_and_up

    def _store(self, fault: Fault, cluster: PrivateFoundationDB) -> Callable[[], Awaitable[None]]:
        victim = cluster.names[int(fault.draw * len(cluster.names))]

        async def kill() -> None:
            await cluster.kill(victim)
            await asyncio.sleep(fault.seconds)
            await cluster.start_one(victim)

        return kill if fault.act == "kill" else lambda: self._stall(cluster, cluster.coordinator, fault.seconds)

    async def _silence(self, fault: Fault) -> None:
        """Suspend one queue's leader inside RabbitMQ for the fault's time, while all other queues go on."""
        leader, milliseconds = f"'%2F_{QUEUES[int(fault.draw * len(QUEUES))]}'", round(1000 * fault.seconds)
        await self._testbed.command_broker(f"sys:suspend({leader}), timer:sleep({milliseconds}), sys:resume({leader}).")

    @staticmethod
    async def _stall(servers: PrivateProcesses, name: str, seconds: float) -> None:
        """Stop a server by SIGSTOP for some seconds: its connections stay open, and nothing comes through them."""
        process = servers.processes.get(name)
        if process is None:
            return
        os.kill(process.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(process.pid, signal.SIGCONT)
