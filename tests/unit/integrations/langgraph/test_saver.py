"""Checkpoints of LangGraph in shared state: its own conformance tests, and graphs that go on elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

from coditect.errors import InputError, SetupError, TooLarge
from coditect.integrations.langgraph import CoditectSaver
from coditect.integrations.langgraph.loops import RunningLoop
from coditect.testing import TestFleet


def thread(name: str, **more: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name, "checkpoint_ns": ""} | more}


async def test_the_saver_passes_langgraphs_own_conformance_tests() -> None:
    async with TestFleet() as fleet:

        @checkpointer_test(name="CoditectSaver")
        async def saver() -> AsyncGenerator[BaseCheckpointSaver[Any]]:
            yield CoditectSaver(fleet.client)

        report = await validate(saver)

    assert report.passed_all_base(), report.results
    assert not [name for name, result in report.results.items() if result.tests_failed], report.results


class Draft(TypedDict, total=False):
    text: str
    parts: list[str]
    verdict: str


def paused_graph(saver: BaseCheckpointSaver[Any]) -> Any:
    def write(state: Draft) -> Draft:
        return {"text": state["text"].upper()}

    def approve(state: Draft) -> Draft:
        return {"verdict": interrupt(state["text"])}

    graph = StateGraph(Draft)
    graph.add_node("write", write)
    graph.add_node("approve", approve)
    graph.add_edge(START, "write")
    graph.add_edge("write", "approve")
    graph.add_edge("approve", END)
    return graph.compile(checkpointer=saver)


async def test_a_paused_graph_goes_on_with_another_saver() -> None:
    async with TestFleet() as fleet:
        paused = await paused_graph(CoditectSaver(fleet.client)).ainvoke({"text": "hello"}, thread("a"))
        other = paused_graph(CoditectSaver(fleet.client))
        ended = await other.ainvoke(Command(resume="granted"), thread("a"))
        steps = [state.metadata["step"] async for state in other.aget_state_history(thread("a"))]

    assert paused["__interrupt__"][0].value == "HELLO"
    assert ended == {"text": "HELLO", "verdict": "granted"}
    assert steps == sorted(steps, reverse=True)
    assert len(steps) == 4


def test_a_saver_whose_loop_has_ended_says_so_and_does_not_wait_for_it() -> None:
    ended = asyncio.new_event_loop()

    async def made() -> RunningLoop:
        return RunningLoop()

    loop = ended.run_until_complete(made())  # it is there, and runs no more
    with pytest.raises(SetupError, match="runs no more"):
        loop.run(asyncio.sleep(0))
    with pytest.raises(SetupError, match="runs no more"):
        asyncio.run(loop.call(asyncio.sleep(0)))
    ended.close()


async def test_a_graph_that_blocks_is_called_from_another_thread() -> None:
    async with TestFleet() as fleet:
        graph = paused_graph(CoditectSaver(fleet.client))
        paused = await asyncio.to_thread(graph.invoke, {"text": "hello"}, thread("a"))
        listed = await asyncio.to_thread(lambda: [*graph.get_state_history(thread("a"), limit=2)])
        with pytest.raises(SetupError, match="own event loop"):
            graph.invoke({"text": "hello"}, thread("b"))

    assert paused["__interrupt__"][0].value == "HELLO"
    assert [state.next for state in listed] == [("approve",), ("write",)]


async def test_of_two_equal_writes_the_first_counts_but_of_an_error_the_last() -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        at = await saver.aput(thread("a"), empty_checkpoint(), {}, {})
        await saver.aput_writes(at, [("x", 1), ("y", 2)], "late", "~b")
        await saver.aput_writes(at, [("x", 3)], "early", "~a")
        await saver.aput_writes(at, [("x", "again")], "late", "~b")
        for error in ("first", "last"):
            await saver.aput_writes(at, [("__error__", error)], "late", "~b")
        found = await saver.aget_tuple(thread("a"))

    assert found is not None
    assert found.pending_writes == [
        ("early", "x", 3),
        ("late", "__error__", "last"),
        ("late", "x", 1),
        ("late", "y", 2),
    ]


async def test_writes_that_come_before_their_checkpoint_are_kept_and_belong_to_it_alone() -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        first, second = {**empty_checkpoint(), "id": "1"}, {**empty_checkpoint(), "id": "12"}
        await saver.aput_writes(thread("a", checkpoint_id="1"), [("x", 1)], "task")
        await saver.aput_writes(thread("a", checkpoint_id="12"), [("x", 2)], "task")
        await saver.aput(thread("a"), first, {}, {})  # type: ignore[arg-type]
        await saver.aput(thread("a", checkpoint_id="1"), second, {}, {})  # type: ignore[arg-type]
        found = [one async for one in saver.alist(thread("a"))]

    assert [one.pending_writes for one in found] == [[("task", "x", 2)], [("task", "x", 1)]]
    assert found[0].parent_config == found[1].config


async def test_many_parallel_tasks_lose_no_write() -> None:
    class Sum(TypedDict):
        parts: list[int]

    graph = StateGraph(Sum)
    graph.add_node("part", lambda number: {"parts": [number]})
    graph.add_node("fan", lambda _: {})
    graph.add_edge(START, "fan")
    graph.add_conditional_edges("fan", lambda _: [Send("part", number) for number in range(40)])

    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        with pytest.raises(Exception, match="one value per step"):
            await graph.compile(checkpointer=saver).ainvoke({"parts": []}, thread("a"))
        found = await saver.aget_tuple(thread("a"))

    assert found is not None
    assert sorted(value for _, channel, (value,) in found.pending_writes or () if channel == "parts") == [*range(40)]


async def test_a_thread_that_is_deleted_leaves_the_others_alone() -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        for name in ("a", "ab"):
            at = await saver.aput(thread(name), empty_checkpoint(), {}, {})
            await saver.aput_writes(at, [("x", 1)], "task")
        await saver.adelete_thread("a")
        left = [one.config["configurable"]["thread_id"] async for one in saver.alist(None)]
        gone = [one async for one in fleet.client.space("langgraph:a").entries()]

    assert left == ["ab"]
    assert gone == []


async def test_what_cannot_be_kept_is_refused_with_what_to_do() -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        large = {**empty_checkpoint(), "channel_values": {"x": "x" * 1_000_000}}
        with pytest.raises(TooLarge, match="CODITECT_BLOB_URL"):
            await saver.aput(thread("a"), large, {}, {})  # type: ignore[arg-type]
        with pytest.raises(InputError, match="thread"):
            await saver.aget_tuple({"configurable": {}})
        with pytest.raises(InputError, match="500"):
            await saver.aput(thread("a" * 600), empty_checkpoint(), {}, {})
        with pytest.raises(SetupError, match="event loop"):
            await asyncio.to_thread(CoditectSaver, fleet.client)
