"""The agent of the test with a real collector: numbers, one handler of which asks for another, and one that fails."""

from __future__ import annotations

from coditect import Agent, Context, PlainContext, Retry

agent = Agent("tracer", slots=4)


@agent.capability("trace.read")
async def read(value: int) -> int:
    return value


@agent.capability("trace.double")
async def double(value: int) -> int:
    return 2 * value


@agent.capability("trace.quadruple")
def quadruple(value: int, ctx: PlainContext) -> int:
    return 2 * int(ctx.request("trace.double", value))


@agent.capability("trace.shaky", retry=Retry(max_attempts=2, first="10ms", cap="10ms"))
async def shaky(value: int, ctx: Context) -> int:
    if ctx.attempt == 1:
        raise OSError("the first attempt fails")
    return value


@agent.capability("trace.sum")
async def add(values: list[int]) -> int:
    return sum(values)
