"""The waiting agents and their tasks, shared by the parts about slots and priorities."""

from __future__ import annotations

from benchmarks.programs.workload import WAIT, Wait
from benchmarks.stage import Program, agent
from coditect import Client, Handle, Priority

WAITER = "benchmarks.programs.workload:waiter"
HAULER = "benchmarks.programs.workload:hauler"
RESULT_SECONDS = 120.0


def waiting_agent(*, slots: int, drain_seconds: float = 5.0, target: str = WAITER) -> Program:
    """Return an agent process whose tasks wait."""
    return agent(target, slots=slots, drain_seconds=drain_seconds)


async def submit_waits(
    client: Client, count: int, *, milliseconds: int, priority: Priority, capability: str = WAIT
) -> list[Handle]:
    """Submit `count` waiting tasks at once; return their handles when the broker has them all."""
    values = (Wait(milliseconds) for _ in range(count))
    return [handle async for handle in client.submit_many(capability, values, priority=priority)]


async def started_ns(handle: Handle) -> int:
    """Return the time at which a task's handler began, on the machine's monotonic clock."""
    value = await handle.result(timeout=RESULT_SECONDS)
    moment: int = value["started_ns"]
    return moment
