"""An agent that keeps something in memory, so that it matters which process gets the next task."""

from coditect import Agent, Context

notes = Agent("notes", version="1.0.0")

kept: dict[str, list[str]] = {}


@notes.capability("note.add", timeout="5s")
async def add(note: dict[str, str], ctx: Context) -> str:
    """Keeps a note; answers who keeps it."""
    kept.setdefault(note["topic"], []).append(note["text"])
    return ctx.agent_id


@notes.capability("note.list", timeout="5s")
async def listed(topic: str, ctx: Context) -> dict[str, list[str] | str]:
    """The notes that this process keeps."""
    return {"agent": ctx.agent_id, "notes": kept.get(topic, [])}
