"""An agent that tells the fleet what it sees, and listens to what everybody is told."""

from typing import Any

from coditect import Agent, Context

thermometer = Agent("thermometer", version="1.0.0")

limits = {"too_hot": 30.0}


@thermometer.on_broadcast("limits.changed")
def change_limits(new: Any) -> None:
    """Told to every process of this agent."""
    limits.update(new)


@thermometer.capability("temperature.check", timeout="5s")
async def check(degrees: float, ctx: Context) -> str:
    """Compares a temperature with the limit; says so to whoever listens when it is above."""
    if degrees <= limits["too_hot"]:
        return "fine"
    await ctx.emit("temperature.high", subject="greenhouse", degrees=degrees)
    return "too hot"
