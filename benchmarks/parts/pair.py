"""The two sides of a comparison, in alternating rounds: each with a fresh agent and a fresh client process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benchmarks.programs.driver import PREFETCH
from benchmarks.stage import Program, Stage, agent, python

ECHOER = "benchmarks.programs.workload:echoer"


class Side(StrEnum):
    """Whose programs run."""

    OURS = "coditect"
    THEIRS = "aio-pika"


@dataclass(frozen=True, slots=True)
class Mode:
    """What the client does; see `programs.client`."""

    name: str
    warm_up: int
    count: int


def agent_of(side: Side, *, profile: str | None = None) -> Program:
    """The agent process of this side."""
    if side is Side.OURS:
        return agent(ECHOER, slots=PREFETCH, profile=profile)
    return python("aio-pika-agent", "benchmarks.programs.aio_pika_agent")


async def one_round(stage: Stage, side: Side, mode: Mode, *, profiles: Sequence[str] = ()) -> dict[str, Any]:
    """One measurement; with `profiles` client and agent write their profiles to these two files."""
    client_profile, agent_profile = profiles or (None, None)
    async with stage.running(agent_of(side, profile=agent_profile)) as pid:
        watched = f"agent={pid},broker={stage.broker_pid}"
        arguments = [side.value, mode.name, str(mode.warm_up), str(mode.count), watched]
        if client_profile:
            arguments.append(client_profile)
        return await stage.finished(python("client", "benchmarks.programs.client", *arguments))


async def alternating(stage: Stage, mode: Mode, *, rounds: int) -> dict[Side, list[dict[str, Any]]]:
    """So many rounds of each side; who goes first alternates, too."""
    found: dict[Side, list[dict[str, Any]]] = {side: [] for side in Side}
    for number in range(rounds):
        for side in sorted(Side, reverse=number % 2 == 1):
            found[side].append(await one_round(stage, side, mode))
    return found
