"""A stand-in for an external service that is mostly down, and the capability that calls it through a breaker."""

from __future__ import annotations

import asyncio

from chaos.history import Note, Type
from coditect import Agent, Breaker, Context, Retry

CALL = "chaos.call"
DEPENDENCY = Breaker("chaos", failures=2, reset="1500ms", on=(OSError,))
CALL_ATTEMPTS = 20
PERIOD_SECONDS, DOWN_SECONDS = 10.0, 6.0
"""The time from one outage of the dependency to the next, and how long each lasts, by the machine's monotonic clock."""


def offer_calls(agent: Agent, note: Note) -> None:
    """Add to an agent a capability that calls the dependency through a circuit breaker, and records the calls."""
    retry = Retry(max_attempts=CALL_ATTEMPTS, first="100ms", cap="1s")

    @agent.capability(CALL, timeout="10m", retry=retry, description="Calls a dependency that is down most of the time.")
    async def call(milliseconds: int, ctx: Context) -> None:
        """Call the dependency, and record the call; if it probes the open breaker, with the permit of the probe."""
        async with ctx.breaker(DEPENDENCY.name) as guarded:
            said = {"proc": ctx.agent_id, "task": ctx.task_id, "permit": guarded.permit}
            note(Type.INVOKE, "call", DEPENDENCY.name, **said)
            await asyncio.sleep(milliseconds / 1000)
            down = asyncio.get_running_loop().time() % PERIOD_SECONDS < DOWN_SECONDS
            note(Type.FAIL if down else Type.OK, "call", DEPENDENCY.name, **said)
            if down:
                raise OSError("the dependency is down")
