"""Three RabbitMQ nodes that form a cluster on this machine, to kill, freeze and restart."""

from __future__ import annotations

import asyncio
import os
import secrets
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil

from coditect.local.private import PrivateProcesses
from coditect.local.servers import (
    ERLANG,
    Addresses,
    Binaries,
    ServerPorts,
    find_binaries,
    free_ports,
    rabbitmq_children,
    redis_child,
)
from coditect.local.supervisor import Child
from tests.support import eventually

NODES = ("one", "two", "three")
TICK_SECONDS = 10
"""The time after which a node takes a silent node for dead, which RabbitMQ's default makes a minute."""
HEALING_SECONDS = 120.0
"""The time after which nobody waits for RabbitMQ to heal a partition any longer; 65 s are common."""
ANSWER_SECONDS = 20.0
"""The time in which a node says what it sees; one that is about to heal may never answer."""
PEERS = "\n".join(f"cluster_formation.classic_config.nodes.{n} = {name}@localhost" for n, name in enumerate(NODES, 1))
CONFIGURATION = f"""\
cluster_name = coditect
cluster_partition_handling = autoheal
cluster_formation.peer_discovery_backend = rabbit_peer_discovery_classic_config
{PEERS}
"""


class Cluster(PrivateProcesses):
    """The nodes by name, with the port mapper that they share, and a Redis."""

    def __init__(self, children: Sequence[Child], *, addresses: Mapping[str, Addresses], folder: Path) -> None:
        super().__init__(children, folder=folder)
        self._addresses = addresses
        self.redis_url = addresses[NODES[0]].redis_url

    @property
    def amqp_url(self) -> str:
        """The address of all nodes, as a program takes it: one whole, of the others host and port."""
        first, *others = (self._addresses[name] for name in NODES)
        return ",".join([first.amqp_url, *(f"127.0.0.1:{one.ports.amqp}" for one in others)])

    def port_of(self, node: str) -> int:
        """The AMQP port of one node."""
        return self._addresses[node].ports.amqp

    async def whole(self) -> None:
        """Return when all nodes run, and no quorum queue needs each of its members: then any one node may go."""
        await eventually(self._all_run)
        await eventually(self._is_spare)

    async def _is_spare(self) -> bool:
        """Whether any one node may go: asked for less long than an answer is awaited."""
        expression = "rabbit_upgrade_preparation:await_online_quorum_plus_one(10000)."
        return await self._evaluate(NODES[0], expression) == "true"

    async def rejoin(self, node: str) -> None:
        """Return when the cluster is whole after a node was frozen: RabbitMQ heals it, or a restart of that node does.

        RabbitMQ 3.10 may heal for ever, if a node that was to be healed last time missed that it was safe to start.
        """
        try:
            await eventually(self._all_run, seconds=HEALING_SECONDS)
        except AssertionError:
            print(f"node {node} is restarted: RabbitMQ did not heal the partition within {HEALING_SECONDS:.0f} s")
            await self.restart(node)
        await self.whole()

    async def _all_run(self) -> bool:
        counts = [await self._evaluate(node, "length(rabbit_nodes:all_running()).") for node in NODES]
        return counts == [str(len(NODES))] * len(NODES)

    async def _evaluate(self, node: str, expression: str) -> str:
        """Return what an Erlang expression is worth to a node; empty when the node does not answer."""
        script, process = find_binaries(os.environ).rabbitmq, psutil.Process(self.processes[node].pid)
        assert script is not None
        words = (script.with_name("rabbitmqctl"), "--quiet", "eval", expression)
        control = await asyncio.create_subprocess_exec(*words, env=process.environ(), stdout=PIPE, stderr=DEVNULL)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                output, _ = await control.communicate()
        except TimeoutError:
            control.kill()
            await control.wait()
            return ""
        return output.decode().strip()

    async def restart(self, node: str) -> None:
        """Stop a node as an administrator does, and start it again; returns when it answers."""
        await self._running[node].stop()
        await self.start_one(node)

    @asynccontextmanager
    async def frozen(self, node: str) -> AsyncIterator[None]:
        """A node is stopped by SIGSTOP for as long as the block lasts."""
        process = psutil.Process(self.processes[node].pid)
        process.suspend()
        try:
            yield
        finally:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@asynccontextmanager
async def running_cluster(folder: Path) -> AsyncIterator[Cluster]:
    """A cluster that runs for as long as the block lasts, its files below `folder`."""
    epmd, redis, *ports = free_ports(2 + 2 * len(NODES))
    password, cookie = secrets.token_hex(16), secrets.token_hex(16).upper()
    addresses = {
        name: Addresses(ServerPorts(ports[2 * at], ports[2 * at + 1], epmd, redis), password, cookie)
        for at, name in enumerate(NODES)
    }
    binaries = find_binaries(os.environ)
    children = [redis_child(binaries, addresses[NODES[0]], folder=folder / "redis", environ=os.environ)]
    for at, name in enumerate(NODES):
        mapper, node = _node(binaries, addresses[name], name, folder / name)
        children += [mapper, node] if at == 0 else [node]
    async with Cluster(children, addresses=addresses, folder=folder).running() as cluster:
        yield cluster


def _node(binaries: Binaries, addresses: Addresses, name: str, folder: Path) -> tuple[Child, Child]:
    """Return the port mapper and a node, which joins the nodes that run when it starts for the first time."""
    mapper, broker = rabbitmq_children(binaries, addresses, folder=folder, environ=os.environ)
    with (folder / "rabbitmq.conf").open("a") as configuration:
        configuration.write(CONFIGURATION)
    erlang = f"{broker.env[ERLANG]} -kernel net_ticktime {TICK_SECONDS}"
    env = {**broker.env, "RABBITMQ_NODENAME": f"{name}@localhost", ERLANG: erlang}
    return mapper, replace(broker, name=name, env=env)
