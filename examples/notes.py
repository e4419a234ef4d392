"""An agent that keeps notes in memory, so that it matters which process gets the next task."""

from coditect import Agent, Context

notes = Agent("notes", version="1.0.0")

kept: dict[str, list[str]] = {}


@notes.capability("note.add", timeout="5s")
async def add(note: dict[str, str], ctx: Context) -> str:
    """Keep a note in memory, and return the id of the agent process that keeps it."""
    kept.setdefault(note["topic"], []).append(note["text"])
    return ctx.agent_id


@notes.capability("note.list", timeout="5s")
async def listed(topic: str, ctx: Context) -> dict[str, list[str] | str]:
    """Return the notes on a topic that the agent process keeps, and the id of the process."""
    return {"agent": ctx.agent_id, "notes": kept.get(topic, [])}
