"""Nodes of LangGraph graphs that agents do: once for each checkpoint, whatever becomes of the graph's process."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from coditect import Agent, Retry
from coditect.errors import InputError, TaskFailed
from coditect.integrations.langgraph import CoditectSaver, task_node
from coditect.testing import TestFleet


class Work(TypedDict, total=False):
    text: str
    length: int
    verdict: str


class Counter:
    """An agent that counts letters, and how often it was asked."""

    def __init__(self, *, fails: int = 0) -> None:
        self.calls, self.canceled, self._fails = 0, False, fails
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.may_end.set()
        self.agent = Agent("counter")
        self.agent.capability("text.count", retry=Retry(max_attempts=1))(self.count)

    async def count(self, text: str) -> int:
        self.calls += 1
        self.begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.canceled = True
            raise
        if self.calls <= self._fails:
            raise ValueError("the letters are gone")
        return len(text)


def graph_of(node: Any, saver: Any = None, *, loops: int = 1) -> Any:
    def approve(state: Work) -> Work:
        return {"verdict": interrupt(state["length"])}

    graph = StateGraph(Work)
    names = [f"count-{number}" for number in range(loops)]
    for name in names:
        graph.add_node(name, node)
    graph.add_node("approve", approve)
    for before, after in zip([START, *names, "approve"], [*names, "approve", END], strict=True):
        graph.add_edge(before, after)
    return graph.compile(checkpointer=saver)


def thread(name: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name}}


async def test_a_node_is_a_durable_task_and_is_not_submitted_again_when_the_graph_goes_on() -> None:
    counter = Counter()
    async with TestFleet(agents=[counter.agent]) as fleet:
        node = task_node(fleet.client, "text.count", reads="text", writes="length")
        graph = graph_of(node, CoditectSaver(fleet.client))
        paused = await graph.ainvoke({"text": "hello"}, thread("a"))
        ended = await graph.ainvoke(Command(resume="fine"), thread("a"))
        runs = [run async for run in fleet.client.workflows.list()]

    assert paused["length"] == 5
    assert ended == {"text": "hello", "length": 5, "verdict": "fine"}
    assert (counter.calls, len(runs)) == (1, 1)


async def test_a_graph_that_was_ended_amid_a_node_waits_for_the_same_task() -> None:
    counter = Counter()
    counter.may_end.clear()
    async with TestFleet(agents=[counter.agent]) as fleet:
        node = task_node(fleet.client, "text.count", reads="text", writes="length")
        graph = graph_of(node, CoditectSaver(fleet.client))
        first = asyncio.create_task(graph.ainvoke({"text": "hello"}, thread("a")))
        await counter.begun.wait()
        first.cancel()
        await asyncio.wait([first])
        counter.may_end.set()
        paused = await graph.ainvoke(None, thread("a"))

    assert paused["length"] == 5
    assert counter.calls == 1


async def test_each_step_and_each_thread_is_a_task_of_its_own() -> None:
    counter = Counter()
    async with TestFleet(agents=[counter.agent]) as fleet:
        node = task_node(fleet.client, "text.count", reads=lambda state: state["text"] * 2, writes="length")
        graph = graph_of(node, CoditectSaver(fleet.client), loops=2)
        for name in ("a", "b"):
            paused = await graph.ainvoke({"text": "hello"}, thread(name))

    assert paused["length"] == 10
    assert counter.calls == 4


async def test_a_task_that_failed_is_done_again_when_the_graph_goes_on() -> None:
    counter = Counter(fails=1)
    async with TestFleet(agents=[counter.agent]) as fleet:
        node = task_node(fleet.client, "text.count", reads="text", writes="length")
        graph = graph_of(node, CoditectSaver(fleet.client))
        with pytest.raises(TaskFailed, match="letters are gone"):
            await graph.ainvoke({"text": "hello"}, thread("a"))
        paused = await graph.ainvoke(None, thread("a"))
        runs = [run async for run in fleet.client.workflows.list()]

    assert paused["length"] == 5
    assert (counter.calls, len(runs)) == (2, 1)


async def test_a_direct_task_needs_no_checkpointer_and_is_canceled_with_its_graph() -> None:
    counter = Counter()
    counter.may_end.clear()
    async with TestFleet(agents=[counter.agent]) as fleet:
        node = task_node(fleet.client, "text.count", reads="text", writes="length", direct=True)
        running = asyncio.create_task(graph_of(node).ainvoke({"text": "hello"}))
        await counter.begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await fleet.advance("1s")
        assert counter.canceled


async def test_a_durable_node_without_a_checkpointer_is_refused() -> None:
    counter = Counter()
    async with TestFleet(agents=[counter.agent]) as fleet:
        node = task_node(fleet.client, "text.count", reads="text", writes="length")
        with pytest.raises(InputError, match="checkpointer"):
            await graph_of(node).ainvoke({"text": "hello"})

    assert counter.calls == 0
