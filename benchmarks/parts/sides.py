"""The sides of a comparison, in alternating rounds: each with a fresh agent and a fresh client process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from enum import StrEnum
from typing import Any, TypeVar

from benchmarks.programs import others
from benchmarks.programs.driver import PREFETCH
from benchmarks.programs.order import Mode, Order
from benchmarks.programs.tally import FOLDER
from benchmarks.programs.workload import CAPABILITIES
from benchmarks.stage import PYTHON, Program, Stage, agent, python

S = TypeVar("S")

ECHOER = "benchmarks.programs.workload:echoer"
COUNTER = "benchmarks.programs.workload:counter"
READY_SECONDS = 30.0
CAPABILITY_SECONDS = 0.3
"""The time that an agent may take to declare the four quorum queues of a capability, on a busy machine."""
TALLIED = (Mode.FORGET, Mode.FILL)


class Side(StrEnum):
    """A system to compare, whose client and agent programs are run."""

    CODITECT = "coditect"
    """Our client and agent."""
    AIO_PIKA = "aio-pika"
    """The hand-written aio-pika program, to which every ratio refers."""
    CELERY = "Celery"
    TASKIQ = "Taskiq"
    RQ = "RQ"
    DASK = "Dask"
    """Dask's scheduler, which keeps all in memory; it runs graphs only."""


BY_HAND = (Side.CODITECT, Side.AIO_PIKA)
OTHERS = {Side.CELERY: others.CELERY, Side.TASKIQ: others.TASKIQ, Side.RQ: others.RQ}


def driver_of(side: Side) -> str:
    """Return the module of a side's driver."""
    if side is Side.CODITECT:
        return "benchmarks.programs.coditect_driver"
    if side in OTHERS:
        return OTHERS[side].driver
    return "benchmarks.programs.aio_pika_driver"


def agent_of(side: Side, order: Order) -> Program:
    """Return a side's agent process for an order."""
    if side is Side.CODITECT:
        target = COUNTER if order.mode in TALLIED else ECHOER
        program = agent(target, slots=PREFETCH, env=environment(order))
        return replace(program, ready_seconds=READY_SECONDS + order.capabilities * CAPABILITY_SECONDS)
    if side in OTHERS:
        return Program(side.value.lower(), (PYTHON, *OTHERS[side].worker))
    return python("aio-pika-agent", "benchmarks.programs.aio_pika_agent", env=environment(order))


def environment(order: Order) -> Mapping[str, str]:
    """Return the environment variables for a side's client and agent."""
    return {FOLDER: order.tally, CAPABILITIES: str(order.capabilities)}


def with_tally(stage: Stage, order: Order) -> Order:
    """Return the order, with a fresh folder for the count if its tasks are counted."""
    return replace(order, tally=str(stage.fresh_folder("tally"))) if order.mode in TALLIED else order


def client_of(side: Side, order: Order) -> Program:
    """Return the client process that carries out an order."""
    written = replace(order, driver=driver_of(side)).written()
    return python("client", "benchmarks.programs.client", written, env=environment(order))


async def one_round(stage: Stage, side: Side, order: Order, *, agents: int = 1) -> dict[str, Any]:
    """Run one measurement of a side, and return the client's figures."""
    order = with_tally(stage, order)
    async with AsyncExitStack() as running:
        pids = [await running.enter_async_context(stage.running(agent_of(side, order))) for _ in range(agents)]
        watched = {"agent": pids[0], "broker": stage.broker_pid}
        return await stage.finished(client_of(side, replace(order, watched=watched)))


async def alternating(
    stage: Stage, sides: Sequence[Side], order: Order, *, rounds: int, agents: int = 1
) -> dict[Side, list[dict[str, Any]]]:
    """Run `rounds` rounds of each side, in alternating order; return the clients' figures."""
    found: dict[Side, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in rotated(sides, number):
            found[side].append(await one_round(stage, side, order, agents=agents))
    return found


def rotated(sides: Sequence[S], number: int) -> list[S]:
    """Return the sides, with a different side first in each round."""
    first = number % len(sides)
    return [*sides[first:], *sides[:first]]
