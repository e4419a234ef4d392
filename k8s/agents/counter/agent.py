"""An agent with another capability: each has a Deployment of its own, and is scaled by its own queues."""

from coditect import Agent

counter = Agent("counter", version="0.1.0")


@counter.capability("text.count", timeout="30s")
async def count(text: str) -> int:
    """Counts the words of a text."""
    return len(text.split())
