"""What tracing costs the direct lane: off, on beside a collector, on beside none, and with every trace kept."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from benchmarks.figures import median, ratio
from benchmarks.parts.sides import Side, agent_of, client_of
from benchmarks.programs.order import Mode, Order
from benchmarks.size import Size
from benchmarks.stage import Program, Stage, python
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect.local.servers import free_ports

NAME = "tracing"


class Traced(StrEnum):
    """How client and agent are traced."""

    OFF = "off"
    UP = "on, collector up"
    DEAD = "on, collector dead"
    ALL = "every trace, collector up"


LEAST = {Traced.UP: 0.93, Traced.DEAD: 0.97}
OWN = ("client", "agent")


@dataclass(frozen=True, slots=True)
class TracingRounds:
    """The rounds of all sides: the client's figures, in the order of the rounds."""

    rounds: Mapping[Traced, list[dict[str, Any]]]

    def speeds(self, side: Traced) -> tuple[float, ...]:
        """Return a side's tasks per second, by round."""
        return tuple(measured["tasks"] / measured["seconds"] for measured in self.rounds[side])

    def cpu_microseconds(self, side: Traced) -> tuple[float, ...]:
        """Return the processor time of client and agent per task, by round."""
        return tuple(
            sum(measured["cpu_seconds"][name] for name in OWN) / measured["tasks"] * 1e6
            for measured in self.rounds[side]
        )


def settings_of(side: Traced, collector: int, nobody: int) -> dict[str, str]:
    """Return the environment of client and agent: ports of a collector, and of nobody."""
    if side is Traced.OFF:
        return {}
    port = nobody if side is Traced.DEAD else collector
    found = {"CODITECT_TRACING": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    return found | {"OTEL_TRACES_SAMPLER": "parentbased_always_on"} if side is Traced.ALL else found


def _with(program: Program, more: Mapping[str, str]) -> Program:
    return replace(program, env={**program.env, **more})


async def measure(stage: Stage, size: Size) -> TracingRounds:
    """Measure alternating rounds of all sides, each with a fresh agent and client."""
    order, sides = Order(Mode.BURST, size.warm_up, size.tasks), tuple(Traced)
    found: dict[Traced, list[dict[str, Any]]] = {side: [] for side in sides}
    (collector,) = free_ports(1)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        closed = nobody.getsockname()[1]
        async with stage.running(python("collector", "benchmarks.programs.collector", str(collector))):
            for number in range(size.rounds):
                for side in (*sides[number % len(sides) :], *sides[: number % len(sides)]):
                    more = settings_of(side, collector, closed)
                    found[side].append(await _one_round(stage, order, more))
    return TracingRounds(found)


async def _one_round(stage: Stage, order: Order, more: Mapping[str, str]) -> dict[str, Any]:
    async with AsyncExitStack() as running:
        pid = await running.enter_async_context(stage.running(_with(agent_of(Side.CODITECT, order), more)))
        watched = {"agent": pid, "broker": stage.broker_pid}
        return await stage.finished(_with(client_of(Side.CODITECT, replace(order, watched=watched)), more))


def verdicts(found: TracingRounds) -> tuple[Verdict, ...]:
    """Compare the speed of no-op tasks with tracing to that without, round by round."""
    off = found.speeds(Traced.OFF)
    return tuple(
        Verdict(
            f"no-op tasks per second, tracing {side.value} / off",
            ratio(found.speeds(side), off),
            Bound.AT_LEAST,
            least,
            "x",
        )
        for side, least in LEAST.items()
    )


def figures(found: TracingRounds) -> tuple[Figure, ...]:
    """Return the speed and the processor time of every side."""
    shown = [
        Figure(f"no-op tasks per second, tracing {side.value}", median(found.speeds(side)), "/s") for side in Traced
    ]
    cpu = [
        Figure(f"CPU of client and agent per task, tracing {side.value}", median(found.cpu_microseconds(side)), "us")
        for side in Traced
    ]
    return (*shown, *cpu)


async def run(stage: Stage, size: Size) -> Findings:
    """Measure tasks with results under each kind of tracing, and judge the speed."""
    found = await measure(stage, size)
    note = "the collector is a stub on the same machine; new traces are kept up to 50 a second unless it says `every`"
    return Findings(
        NAME,
        verdicts(found),
        figures(found),
        {side.value: measured for side, measured in found.rounds.items()},
        notes=(note,),
    )
