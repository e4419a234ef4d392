"""The tasks of a chaos run, the agents that execute them, and the side effect that each task makes exactly once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any, Protocol
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field

from chaos.history import Note, Type
from chaos.load.dependency import DEPENDENCY, offer_calls
from coditect import Agent, CoditectError, Context, Retry

CAPABILITY = "chaos.work"
MOST_ATTEMPTS = 5
SLOTS = 4
"""The number of slots of each agent."""
UNDO = "chaos.undo"
"""The capability that compensates a node of a run."""
UNDO_ATTEMPTS = 3
KEYED = "chaos.keyed"
"""The capability of which one task of a key runs at a time in the whole fleet."""
CHILD = "chaos.child"
CHILDREN_AT_ONCE = 200
LOCK_TTL = "2s"
HANDOFF_SECONDS = 10.0
CHILD_SECONDS = 60
"""The timeout of a task's request to its child."""


class Work(BaseModel):
    """The input of a run's task: how long to work, how to fail, and the predecessors' tokens."""

    model_config = ConfigDict(extra="forbid")

    milliseconds: int = Field(ge=0, le=1_800_000)
    fails: int = 0
    """The number of first attempts that fail; later attempts succeed."""
    broken: bool = False
    """Whether every attempt of the task fails."""
    after: list[str] = []
    """The tokens from the predecessors' results, which the execution records."""
    child: int = Field(default=0, ge=0, le=1_800_000)
    """The milliseconds of the child task that the task awaits, without a slot; 0 for no child."""
    lock: str = ""
    """The resource that the task locks while it works; empty for none."""
    hand: bool = False
    """Whether the task is offered to the other agents before it is worked on, unless it came by a handoff."""
    key: str = ""
    """The key of a task of the capability `KEYED`; empty for tasks of others."""


class WorkDone(BaseModel):
    """The result of a run's task: fence, agent, and the token that identifies the task's side effect."""

    fence: int
    """The fence under which the execution that returned the result began."""
    agent: str
    """The id of the agent that executed the task."""
    token: str
    """The token of the task's effect, which is made once."""


class Undo(BaseModel):
    """The input of a compensation: the input and the result of the completed node."""

    input: Work
    result: WorkDone


class Flaky(Exception):
    """The retryable error of an attempt that fails on purpose."""


class Broken(Exception):
    """The error of a task that fails for good on purpose, and is not retried."""

    retryable = False


class WorkEffects(Protocol):
    """The interface that stores the side effects of tasks, at most one for each key, so that checks can count them."""

    def make(self, key: str) -> str:
        """Make the effect of a key unless it exists, and return its token, the same every time."""

    def all(self) -> Iterator[tuple[str, str]]:
        """Yield the key and token of every stored side effect."""


class EffectFolder:
    """The side effects of tasks as files: one per key, even if several processes make it at once or are killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make(self, key: str) -> str:
        """Make the key's file unless it exists, and return the token in it; a kill leaves the file whole or absent."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file, token = self._folder / quote(key, safe=""), token_hex(8)
        draft = self._folder / f".{os.getpid()}-{token}"
        draft.write_text(token)
        with suppress(FileExistsError):
            os.link(draft, file)
        draft.unlink()
        return file.read_text()

    def all(self) -> Iterator[tuple[str, str]]:
        """Yield the key and token of every effect, in the order of their file names."""
        for file in sorted(self._folder.glob("[!.]*")):
            yield unquote(file.name), file.read_text()


class EffectTable:
    """The side effects of simulated tasks, in memory, at most one for each key."""

    def __init__(self) -> None:
        self._tokens: dict[str, str] = {}

    def make(self, key: str) -> str:
        """Make the effect of a key unless it exists, and return its token, the same every time."""
        return self._tokens.setdefault(key, f"token {len(self._tokens)}")

    def all(self) -> Iterator[tuple[str, str]]:
        """Yield the key and token of every effect, in the order in which they were made."""
        yield from self._tokens.items()


def working_agent(name: str, *, note: Note, effects: WorkEffects) -> Agent:
    """Return the agent that executes a run's tasks, and calls `note` to record each start and end of an execution."""
    agent = Agent(name, version="1.0.0", slots=SLOTS, tags=frozenset({"test"}), breakers=[DEPENDENCY])
    offer_calls(agent, note)
    retry = Retry(max_attempts=MOST_ATTEMPTS, first="100ms", cap="1s")

    @agent.capability(CAPABILITY, timeout="10m", retry=retry, description="Waits, fails as often as it is told, works.")
    async def work(task: Work, ctx: Context) -> WorkDone:
        """Wait or fail as the task's input says, and make the effect of the task's id."""
        return await _execute(task, ctx, note, effects)

    @agent.capability(UNDO, timeout="10m", retry=replace(retry, max_attempts=UNDO_ATTEMPTS), description="Undoes.")
    async def undo(done: Undo, ctx: Context) -> WorkDone:
        """Wait or fail as the completed node did, and make the effect of the compensation's own id."""
        return await _execute(done.input, ctx, note, effects)

    @agent.capability(
        KEYED, timeout="10m", retry=retry, concurrency=("{input.key}", 1), description="Works alone with its key."
    )
    async def keyed(task: Work, ctx: Context) -> WorkDone:
        """Do what `work` does, while no other task of the same key runs."""
        return await _execute(task, ctx, note, effects)

    return agent


async def _execute(task: Work, ctx: Context, note: Note, effects: WorkEffects) -> WorkDone:
    said: dict[str, Any] = {"proc": ctx.agent_id, "agent": ctx.agent_id, "attempt": ctx.attempt, "fence": ctx.fence}
    said |= {"priority": ctx.priority.value, "after": task.after} | ({"alone": task.key} if task.key else {})
    note(Type.INVOKE, "execute", ctx.task_id, **said)
    try:
        if task.child:
            await ctx.request(CHILD, task.child, timeout=CHILD_SECONDS)
            note(Type.OK, "go on", ctx.task_id, **said)
        if task.hand:
            await _hand_off(ctx, note, said)
        if task.lock:
            await _work_under_lock(task, ctx, note, said)
        else:
            await asyncio.sleep(task.milliseconds / 1000)
    except asyncio.CancelledError:
        note(Type.INFO, "execute", ctx.task_id, **said)
        raise
    except CoditectError:
        note(Type.FAIL, "execute", ctx.task_id, **said)
        raise
    if task.broken:
        note(Type.FAIL, "execute", ctx.task_id, **said)
        raise Broken("an input that no agent can work on")
    if ctx.attempt <= task.fails:
        note(Type.FAIL, "execute", ctx.task_id, **said)
        raise Flaky(f"attempt {ctx.attempt} of {task.fails} that fail")
    token = effects.make(ctx.task_id)
    note(Type.OK, "execute", ctx.task_id, **said)
    return WorkDone(fence=ctx.fence, agent=ctx.agent_id, token=token)


async def _hand_off(ctx: Context, note: Note, said: dict[str, Any]) -> None:
    """Offer a task to other agents, unless it came by a handoff itself, and record the offer with its outcome."""
    try:
        if await ctx.handoff() is not None:
            return
        note(Type.INVOKE, "hand off", ctx.task_id, **said)
        handoff = await ctx.hand_off(CAPABILITY, reason="chaos", timeout=HANDOFF_SECONDS)
    except CoditectError:  # the request may be carried out all the same
        note(Type.INFO, "hand off", ctx.task_id, **said)
    except asyncio.CancelledError:
        note(Type.INFO, "hand off", ctx.task_id, **said)
        raise
    else:
        note(Type.OK, "hand off", ctx.task_id, **said, state=handoff.state.value)


async def _work_under_lock(task: Work, ctx: Context, note: Note, said: dict[str, Any]) -> None:
    """Work under a lock, and record when and under which fence it was held; without it or once lost, just return."""
    held = {"proc": said["proc"], "task": ctx.task_id, "fence": 0}
    try:
        async with ctx.lock(task.lock, ttl=LOCK_TTL) as lock:
            held["fence"] = lock.fence
            note(Type.INVOKE, "hold", task.lock, **held)
            note(Type.OK, "go on", ctx.task_id, **said)  # it may have waited
            await asyncio.sleep(task.milliseconds / 1000)
            note(Type.OK, "hold", task.lock, **held)
    except asyncio.CancelledError:
        note(Type.INFO, "hold", task.lock, **held)
        raise
    except CoditectError:  # lost, or no dispatcher was there: the task is done all the same
        note(Type.INFO, "hold", task.lock, **held)


def children_agent(name: str) -> Agent:
    """Return the agent for the child tasks that other tasks request, with slots to run all child tasks at once."""
    agent = Agent(name, version="1.0.0", slots=CHILDREN_AT_ONCE, tags=frozenset({"test"}))

    @agent.capability(CHILD, timeout="10m", description="Waits as many milliseconds as it is told.")
    async def child(milliseconds: int) -> None:
        """Wait for the given milliseconds."""
        await asyncio.sleep(milliseconds / 1000)

    return agent
