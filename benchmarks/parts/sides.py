"""The sides of a comparison, in alternating rounds: each with a fresh agent and a fresh client process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from enum import StrEnum
from typing import Any

from benchmarks.programs import others
from benchmarks.programs.driver import PREFETCH
from benchmarks.programs.order import Mode, Order
from benchmarks.programs.tally import FOLDER
from benchmarks.programs.workload import CAPABILITIES
from benchmarks.stage import PYTHON, Program, Stage, agent, python

ECHOER = "benchmarks.programs.workload:echoer"
COUNTER = "benchmarks.programs.workload:counter"
READY_SECONDS = 30.0
CAPABILITY_SECONDS = 0.3
"""What an agent may take to declare the four quorum queues of a capability, on a busy machine."""
TALLIED = (Mode.FORGET, Mode.FILL)


class Side(StrEnum):
    """Whose programs run."""

    DIRECT = "coditect"
    """Ours, on direct frames."""
    PLAIN = "coditect, plain"
    """Ours, on aiormq as it is published."""
    AIO_PIKA = "aio-pika"
    """Written by hand: what every ratio is about."""
    CELERY = "Celery"
    TASKIQ = "Taskiq"
    RQ = "RQ"


BY_HAND = (Side.DIRECT, Side.PLAIN, Side.AIO_PIKA)
WIRES = {Side.DIRECT: "direct", Side.PLAIN: "plain"}
OTHERS = {Side.CELERY: others.CELERY, Side.TASKIQ: others.TASKIQ, Side.RQ: others.RQ}


def driver_of(side: Side) -> str:
    """The module of this side's driver."""
    if side in WIRES:
        return "benchmarks.programs.coditect_driver"
    if side in OTHERS:
        return OTHERS[side].driver
    return "benchmarks.programs.aio_pika_driver"


def agent_of(side: Side, order: Order) -> Program:
    """The agent process that this order is for."""
    if side in WIRES:
        target = COUNTER if order.mode in TALLIED else ECHOER
        program = agent(target, slots=PREFETCH, env=environment(side, order))
        return replace(program, ready_seconds=READY_SECONDS + order.capabilities * CAPABILITY_SECONDS)
    if side in OTHERS:
        return Program(side.value.lower(), (PYTHON, *OTHERS[side].worker))
    return python("aio-pika-agent", "benchmarks.programs.aio_pika_agent", env=environment(side, order))


def environment(side: Side, order: Order) -> Mapping[str, str]:
    """What client and agent of this side read."""
    wire = {"CODITECT_WIRE": WIRES[side]} if side in WIRES else {}
    return {FOLDER: order.tally, CAPABILITIES: str(order.capabilities), **wire}


def with_tally(stage: Stage, order: Order) -> Order:
    """The order with a fresh folder to count in, if its tasks are counted."""
    return replace(order, tally=str(stage.fresh_folder("tally"))) if order.mode in TALLIED else order


def client_of(side: Side, order: Order) -> Program:
    """The client process that carries out the order."""
    written = replace(order, driver=driver_of(side)).written()
    return python("client", "benchmarks.programs.client", written, env=environment(side, order))


async def one_round(stage: Stage, side: Side, order: Order, *, agents: int = 1) -> dict[str, Any]:
    """One measurement: what the client found."""
    order = with_tally(stage, order)
    async with AsyncExitStack() as running:
        pids = [await running.enter_async_context(stage.running(agent_of(side, order))) for _ in range(agents)]
        watched = {"agent": pids[0], "broker": stage.broker_pid}
        return await stage.finished(client_of(side, replace(order, watched=watched)))


async def alternating(
    stage: Stage, sides: Sequence[Side], order: Order, *, rounds: int, agents: int = 1
) -> dict[Side, list[dict[str, Any]]]:
    """So many rounds of each side; who goes first alternates, too."""
    found: dict[Side, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in rotated(sides, number):
            found[side].append(await one_round(stage, side, order, agents=agents))
    return found


def rotated(sides: Sequence[Side], number: int) -> list[Side]:
    """The sides, another one first in each round."""
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]
