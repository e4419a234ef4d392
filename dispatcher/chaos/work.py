"""What the agents of a run do, and the effect that they leave: one for each key, however often a task is executed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field

from coditect import Agent, Context, Retry
from dispatcher.witness.history import Note, Type

CAPABILITY = "chaos.work"
MOST_ATTEMPTS = 5
SLOTS = 4
"""Of each agent."""


class Work(BaseModel):
    """What a task is to do."""

    model_config = ConfigDict(extra="forbid")

    milliseconds: int = Field(ge=0, le=1_800_000)
    fails: int = 0
    """So many first attempts fail."""
    broken: bool = False
    """It fails for good."""
    after: list[str] = []
    """Tokens of the predecessors: the result depends on them."""


class WorkDone(BaseModel):
    """What it did."""

    fence: int
    """Of the execution that says so, when it began."""
    agent: str
    """Who executed it."""
    token: str
    """Of the effect, which is there once."""


class Flaky(Exception):
    """The handler was told to fail."""


class Broken(Exception):
    """The handler was told to fail for good: another attempt would not help."""

    retryable = False


class WorkEffects(Protocol):
    """Things in the world, one for each key."""

    def make(self, key: str) -> str:
        """Makes the effect if it is not there; gives its token, the same every time."""

    def all(self) -> Iterator[tuple[str, str]]:
        """Keys and tokens of what was made."""


class EffectFolder:
    """A file for each effect. A key is made once, whoever asks and whenever it is killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, key: str) -> str:
        """See `WorkEffects`. The file appears with its token in it, or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file, token = self._folder / quote(key, safe=""), token_hex(8)
        draft = self._folder / f".{os.getpid()}-{token}"
        draft.write_text(token)
        with suppress(FileExistsError):
            os.link(draft, file)
        draft.unlink()
        return file.read_text()

    def all(self) -> Iterator[tuple[str, str]]:
        """See `WorkEffects`."""
        for file in sorted(self._folder.glob("[!.]*")):
            yield unquote(file.name), file.read_text()


class EffectTable:
    """Effects in memory."""

    def __init__(self) -> None:
        self._tokens: dict[str, str] = {}

    def make(self, key: str) -> str:
        """See `WorkEffects`."""
        return self._tokens.setdefault(key, f"token {len(self._tokens)}")

    def all(self) -> Iterator[tuple[str, str]]:
        """See `WorkEffects`."""
        yield from self._tokens.items()


def working_agent(name: str, *, note: Note, effects: WorkEffects) -> Agent:
    """An agent that works, notes what it does and leaves effects. `note` is told the agent's id as `proc`."""
    agent = Agent(name, version="1.0.0", slots=SLOTS, tags=frozenset({"test"}))
    retry = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")

    @agent.capability(CAPABILITY, timeout="10m", retry=retry, description="Waits, fails as often as it is told, works.")
    async def work(task: Work, ctx: Context) -> WorkDone:
        """Wait, then make the effect of this task's id."""
        said: dict[str, Any] = {"proc": ctx.agent_id, "agent": ctx.agent_id, "attempt": ctx.attempt, "fence": ctx.fence}
        said |= {"priority": ctx.priority.value, "after": task.after}
        note(Type.INVOKE, "execute", ctx.task_id, **said)
        try:
            await asyncio.sleep(task.milliseconds / 1000)
        except asyncio.CancelledError:
            note(Type.INFO, "execute", ctx.task_id, **said)
            raise
        if task.broken:
            note(Type.FAIL, "execute", ctx.task_id, **said)
            raise Broken("an input that nobody can work on")
        if ctx.attempt <= task.fails:
            note(Type.FAIL, "execute", ctx.task_id, **said)
            raise Flaky(f"attempt {ctx.attempt} of {task.fails} that fail")
        token = effects.make(ctx.task_id)
        note(Type.OK, "execute", ctx.task_id, **said)
        return WorkDone(fence=ctx.fence, agent=ctx.agent_id, token=token)

    return agent
