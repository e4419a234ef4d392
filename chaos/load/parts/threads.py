"""The part of a load in which agents and a person write to a message thread, and another person reads, with breaks."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from pydantic import BaseModel

from chaos.history import Note, Type
from chaos.load.generators import RETRY
from chaos.load.parts.part import PART_RETRY, LoadPart, executed
from chaos.load.workflows import PAUSE_SECONDS, WorkflowLoad
from coditect import Agent, CoditectError, Context, Workflow
from coditect.collaboration.threads import Thread

SAY = "chaos.say"
"""The capability whose tasks say messages in a thread; its name is a participant."""
ADA, BOB = "ada", "bob"
"""The person who says messages, and the one who listens."""
SAYING = 2
"""The number of tasks that say messages in a thread at once."""
MESSAGES = 5
"""The number of messages that a task, and a person, says."""
LEAVES = 0.2
"""The share of messages after which the listener goes away, and comes back."""


class Saying(BaseModel):
    """The input of a task that says messages in a message thread: the thread's id, and how many messages."""

    thread: str
    messages: int


def offer(agent: Agent, note: Note) -> None:
    """Let an agent say messages in a thread, one after the other; a later attempt says the same messages again."""

    @agent.capability(SAY, timeout="10m", retry=PART_RETRY, description="Says messages in a thread.")
    async def say(saying: Saying, ctx: Context) -> int:
        """Say the messages of the task, and record each with its number."""
        async with executed(ctx, note):
            for number in range(saying.messages):
                await _said(note, ctx.thread(saying.thread), f"{ctx.task_id}/{number}", ctx.agent_id)
        return saying.messages


async def talk(load: WorkflowLoad) -> None:
    """Open a thread, have tasks and a person say messages in it while another person listens, and close it."""
    thread = await load.answered(lambda: load.client.threads.open(BOB, SAY, by=ADA))
    flow = Workflow("talk")
    for number in range(SAYING):
        saying = {"thread": thread.id, "messages": MESSAGES}
        flow.task(SAY, saying, name=f"says_{number}", retry=RETRY)
    run = await load.started(flow, priorities={})
    if run is None:
        return
    load.note(Type.INVOKE, "talk", thread.id, listener=BOB)
    async with asyncio.TaskGroup() as group:
        group.create_task(_listen(load, thread.id))
        speaking = group.create_task(_speak(load, thread))
        await load.end_of(run)
        await speaking
        await load.answered(thread.close)
    load.note(Type.OK, "talk", thread.id)


async def _speak(load: WorkflowLoad, thread: Thread) -> None:
    for number in range(MESSAGES):
        await load.soon()
        try:
            await _said(load.note, thread, f"{ADA}/{number}", "client")
        except CoditectError:
            continue  # whether it was said is unknown


async def _said(note: Note, thread: Thread, text: str, proc: str) -> None:
    key = f"{thread.id}/{text}"
    said = {"proc": proc} if proc != "client" else {}
    note(Type.INVOKE, "say", key, thread=thread.id, text=text, **said)
    number = await thread.say(text)
    note(Type.OK, "say", key, number=number, **said)


async def _listen(load: WorkflowLoad, thread: str) -> None:
    """Listen until the thread is closed; begin to listen again after each error, and after some random messages."""
    loops = 0
    while True:
        loops += 1
        key, closed = f"{thread}/{loops}", True
        load.note(Type.INVOKE, "listen", key, thread=thread)
        try:
            async with aclosing(load.client.threads.get(thread, by=BOB).listen()) as messages:
                async for one in messages:
                    load.note(Type.OK, "hear", key, thread=thread, number=one.number, text=one.value)
                    if load.random.random() < LEAVES:
                        closed = False
                        break
        except CoditectError:
            closed = False
        load.note(Type.OK if closed else Type.INFO, "listen", key)
        if closed:
            return
        await asyncio.sleep(PAUSE_SECONDS)


PART = LoadPart("threads", talk, offer)
