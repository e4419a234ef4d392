"""An agent with one capability, to see the fleet work. Put a file of yours in its place."""

from coditect import Agent

greeter = Agent("greeter", version="0.1.0")


@greeter.capability("hello.greet", timeout="30s")
async def greet(name: str) -> str:
    """Greets somebody by name."""
    return f"Hello, {name}!"
