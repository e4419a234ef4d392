"""An agent that emits an event about what it measures, and listens to broadcasts."""

from typing import Any

from coditect import Agent, Context

thermometer = Agent("thermometer", version="1.0.0")

limits = {"too_hot": 30.0}


@thermometer.on_broadcast("limits.changed")
def change_limits(new: Any) -> None:
    """Set new limits; a broadcast calls the function in every process of the agent."""
    limits.update(new)


@thermometer.capability("temperature.check", timeout="5s")
async def check(degrees: float, ctx: Context) -> str:
    """Compare a temperature with the limit, and emit an event when it is above the limit."""
    if degrees <= limits["too_hot"]:
        return "fine"
    await ctx.emit("temperature.high", subject="greenhouse", degrees=degrees)
    return "too hot"
