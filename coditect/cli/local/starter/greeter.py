"""An example agent with one capability, for a new project."""

from coditect import Agent, Context

greeter = Agent("greeter", version="0.1.0")


@greeter.capability("hello.greet", timeout="30s")
async def greet(name: str, ctx: Context) -> str:
    """Greets a person by name."""
    await ctx.progress(0.5, "looking for words")
    return f"Hello, {name}!"
