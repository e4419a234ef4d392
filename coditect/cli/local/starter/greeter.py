"""An agent with one capability, to begin with."""

from coditect import Agent, Context

greeter = Agent("greeter", version="0.1.0")


@greeter.capability("hello.greet", timeout="30s")
async def greet(name: str, ctx: Context) -> str:
    """Greets somebody by name."""
    await ctx.progress(0.5, "looking for words")
    return f"Hello, {name}!"
