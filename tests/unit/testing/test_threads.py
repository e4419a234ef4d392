"""Threads in a fleet on virtual time: agents and a person talk, and what is said waits for those who are away."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from coditect import Agent, Context
from coditect.errors import InputError, ResultTimeout
from coditect.testing import TestFleet

writer = Agent("writer", slots=1)
reader = Agent("reader", slots=4)


@writer.capability("title.choose")
async def choose(subject: str, ctx: Context) -> str:
    """Asks a person for a title."""
    return str(await ctx.ask("ada", f"A title for {subject}?", timeout="1h"))


@writer.capability("title.ask")
async def ask_agent(subject: str, ctx: Context) -> str:
    """Asks another agent by its capability."""
    return str(await ctx.ask("title.think", subject))


@reader.capability("title.think")
async def think(subject: str) -> str:
    """Thinks of a title."""
    return subject.title()


@reader.capability("thread.answer")
async def answer(thread: str, ctx: Context) -> int:
    """Answers the questions of a thread until it is closed."""
    found, answered = ctx.thread(thread), 0
    async for message in found.listen():
        await found.answer(message, f"{message.value}!")
        answered += 1
    return answered


async def test_a_person_answers_what_an_agent_asks_and_the_agent_takes_other_work_meanwhile() -> None:
    async with TestFleet(agents=[writer, reader], seed=1) as fleet:
        asked = await fleet.client.submit("title.choose", "rain")
        while not (rows := [row async for row in fleet.client.threads.list(participant="ada")]):
            await asyncio.sleep(0.1)
        assert await fleet.client.request("title.ask", "the sun") == "The Sun"  # the only slot is free

        thread = fleet.client.threads.get(rows[0].thread, by="ada")
        (question,) = [message async for message in thread.history()]
        await thread.answer(question, "Petrichor")

        assert await asked.result(str) == "Petrichor"
        assert (question.value, question.type, rows[0].task) == ("A title for rain?", "question", asked.task_id)
        while not (await thread.show()).closed_ms:
            await asyncio.sleep(0.1)
        with pytest.raises(InputError, match="closed"):
            await thread.say("too late")


async def test_a_listening_agent_answers_at_once_and_ends_with_the_thread() -> None:
    async with TestFleet(agents=[writer, reader], seed=2) as fleet:
        thread = await fleet.client.threads.open("reader", by="ada")
        listening = await fleet.client.submit("thread.answer", thread.id)
        begun = asyncio.get_running_loop().time()
        answers = [await thread.ask(f"q{n}", to="reader", timeout="1m") for n in range(3)]
        took = asyncio.get_running_loop().time() - begun
        await thread.close("done")

        assert answers == ["q0!", "q1!", "q2!"]
        assert took < 5  # by push: a look would take five seconds for each
        assert await listening.result(int) == 3


async def test_who_was_away_finds_what_was_said_and_reads_it_once() -> None:
    async with TestFleet(agents=[writer, reader], seed=3) as fleet:
        thread = await fleet.client.threads.open("bob", by="ada")
        for n in range(3):
            await thread.say(n)
        heard = []
        for _ in range(2):
            async with aclosing(fleet.client.threads.get(thread.id, by="bob").listen()) as messages:
                async for message in messages:
                    heard.append(message.value)
                    if message.value in {2, "more"}:
                        break
            await thread.say("more")

        assert heard == [0, 1, 2, "more"]


async def test_a_question_without_an_answer_ends_with_its_timeout() -> None:
    async with TestFleet(agents=[writer, reader], seed=4) as fleet:
        thread = await fleet.client.threads.open("bob", by="ada")

        with pytest.raises(ResultTimeout):
            await thread.ask("?", timeout="10s")


async def test_a_handler_that_runs_again_finds_its_thread_and_says_its_message_once() -> None:
    again = Agent("again", slots=1)

    @again.capability("note.say", retry=2)
    async def say(_: None, ctx: Context) -> str:
        thread = await ctx.open_thread("ada")
        await thread.say("hello")
        if ctx.attempt == 1:
            raise RuntimeError("once more")
        return thread.id

    async with TestFleet(agents=[again], seed=5) as fleet:
        thread = fleet.client.threads.get(await fleet.client.request("note.say", None, str))

        assert [message.value async for message in thread.history()] == ["hello"]
