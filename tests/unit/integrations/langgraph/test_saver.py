"""Checkpoints of LangGraph in shared state: its own conformance tests, and graphs that go on elsewhere."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypedDict

import ormsgpack
import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

from coditect.collaboration.state import reserved
from coditect.errors import InputError, InvalidTask, SetupError, TooLarge
from coditect.integrations.langgraph import CoditectSaver
from coditect.integrations.langgraph.node import RunningLoop
from coditect.integrations.langgraph.saver import LARGEST_BYTES
from coditect.testing import TestFleet
from coditect.wire.control import LANGGRAPH


def thread(name: str, **more: str) -> RunnableConfig:
    return {"configurable": {"thread_id": name, "checkpoint_ns": ""} | more}


async def test_the_saver_passes_langgraphs_own_conformance_tests() -> None:
    async with TestFleet() as fleet:

        @checkpointer_test(name="CoditectSaver")
        async def saver() -> AsyncGenerator[BaseCheckpointSaver[Any]]:
            yield CoditectSaver(fleet.client)

        report = await validate(saver)

    assert report.passed_all(), report.results
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


async def test_a_paused_graph_goes_on_with_another_saver_and_from_another_thread() -> None:
    async with TestFleet() as fleet:
        paused = await paused_graph(CoditectSaver(fleet.client)).ainvoke({"text": "hello"}, thread("a"))
        other = paused_graph(CoditectSaver(fleet.client))
        ended = await other.ainvoke(Command(resume="granted"), thread("a"))
        steps = [state.metadata["step"] async for state in other.aget_state_history(thread("a"))]

        assert paused["__interrupt__"][0].value == "HELLO"
        assert ended == {"text": "HELLO", "verdict": "granted"}
        assert steps == sorted(steps, reverse=True)
        assert len(steps) == 4

        blocking = paused_graph(CoditectSaver(fleet.client))
        blocked = await asyncio.to_thread(blocking.invoke, {"text": "hello"}, thread("c"))
        listed = await asyncio.to_thread(lambda: [*blocking.get_state_history(thread("c"), limit=2)])
        with pytest.raises(SetupError, match="own event loop"):
            blocking.invoke({"text": "hello"}, thread("b"))

    assert blocked["__interrupt__"][0].value == "HELLO"
    assert [state.next for state in listed] == [("approve",), ("write",)]


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


async def test_writes_of_a_checkpoint_are_kept_once_and_belong_to_it_alone() -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        latest = await saver.aput(thread("a"), empty_checkpoint(), {}, {})
        await saver.aput_writes(latest, [("x", 1), ("y", 2)], "late", "~b")
        await saver.aput_writes(latest, [("x", 3)], "early", "~a")
        await saver.aput_writes(latest, [("x", "again")], "late", "~b")
        for error in ("first", "last"):
            await saver.aput_writes(latest, [("__error__", error)], "late", "~b")
        kept = await saver.aget_tuple(thread("a"))

        assert kept is not None
        assert kept.pending_writes == [
            ("early", "x", 3),
            ("late", "__error__", "last"),
            ("late", "x", 1),
            ("late", "y", 2),
        ]

        saver = CoditectSaver(fleet.client)
        first, second = {**empty_checkpoint(), "id": "1"}, {**empty_checkpoint(), "id": "12"}
        await saver.aput_writes(thread("b", checkpoint_id="1"), [("x", 1)], "task")
        await saver.aput_writes(thread("b", checkpoint_id="12"), [("x", 2)], "task")
        await saver.aput(thread("b"), first, {}, {})  # type: ignore[arg-type]
        await saver.aput(thread("b", checkpoint_id="1"), second, {}, {})  # type: ignore[arg-type]
        found = [checkpoint async for checkpoint in saver.alist(thread("b"))]

    assert [checkpoint.pending_writes for checkpoint in found] == [[("task", "x", 2)], [("task", "x", 1)]]
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
        left = [checkpoint.config["configurable"]["thread_id"] async for checkpoint in saver.alist(None)]
        gone = [entry async for entry in fleet.client.state("langgraph:a").entries()]

    assert left == ["ab"]
    assert gone == []


async def listed(saver: CoditectSaver) -> list[str]:
    found = [kept.config["configurable"]["thread_id"] + kept.checkpoint["id"] async for kept in saver.alist(None)]
    return sorted(found)


async def test_a_thread_whose_graph_works_on_after_its_deletion_is_listed_and_cleared_of_runs() -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        first = await saver.aput(thread("a"), {**empty_checkpoint(), "id": "1"}, {}, {})
        await saver.adelete_thread("a")
        await saver.aput(first, {**empty_checkpoint(), "id": "2"}, {"run_id": "r2"}, {})
        await saver.aput(thread("b", checkpoint_id="1"), {**empty_checkpoint(), "id": "2"}, {}, {})
        before = await listed(saver)
        await saver.adelete_for_runs(["r2"])

        assert before == ["a2", "b2"]
        assert await listed(saver) == ["b2"]


async def test_a_checkpoint_that_is_stored_amid_a_deletion_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        first = await saver.aput(thread("a"), {**empty_checkpoint(), "id": "1"}, {}, {})
        remove = saver._kept._remove

        async def remove_late(thread: str, keys: Sequence[str]) -> None:
            await saver.aput(first, {**empty_checkpoint(), "id": "2"}, {}, {})
            await remove(thread, keys)

        monkeypatch.setattr(saver._kept, "_remove", remove_late)
        await saver.adelete_thread("a")

        assert await listed(saver) == ["a2"]


async def test_what_cannot_be_kept_is_refused_with_what_to_do() -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        large = {**empty_checkpoint(), "channel_values": {"x": "x" * 1_000_000}}
        with pytest.raises(TooLarge, match="CODITECT_BLOB_URL") as refused:
            await saver.aput(thread("a"), large, {}, {})  # type: ignore[arg-type]
        assert refused.value.facts["limit"] == LARGEST_BYTES
        with pytest.raises(InputError, match="thread"):
            await saver.aget_tuple({"configurable": {}})
        with pytest.raises(InputError, match="500"):
            await saver.aput(thread("a" * 600), empty_checkpoint(), {}, {})
        with pytest.raises(SetupError, match="event loop"):
            await asyncio.to_thread(CoditectSaver, fleet.client)


class Opened:
    """A class that a checkpoint must not rebuild unasked: it does something when it is made."""

    made: ClassVar[list[str]] = []

    def __init__(self, path: str) -> None:
        self.made.append(path)


@dataclass
class Note:
    text: str


def forged(module: str, name: str, argument: Any) -> bytes:
    """A value as LangGraph packs it, which calls a function of the writer's choice."""
    return ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb((module, name, argument))))


@pytest.mark.parametrize(
    ("format", "packed"),
    [
        ("msgpack", forged(__name__, "Opened", "msgpack")),
        ("msgpack", forged("os", "system", f"touch {__name__}")),
        ("json", json.dumps({"lc": 2, "type": "constructor", "id": [*__name__.split("."), "Opened"], "args": ["j"]})),
        ("pickle", b"cos\nsystem\n(S'true'\ntR."),
    ],
)
async def test_a_forged_value_runs_nothing_in_the_process_that_reads_it(
    format: str,  # noqa: A002 - LangGraph's word
    packed: str | bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = list[str]()
    monkeypatch.setattr("os.system", ran.append)
    body = packed.encode() if isinstance(packed, str) else packed
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        at = await saver.aput(thread("a"), empty_checkpoint(), {}, {})
        space = reserved(fleet.client.state("langgraph:a"), LANGGRAPH)
        key = f"writes//{at['configurable']['checkpoint_id']}/task"
        await space.put(key, {"0": ["", "x", format, b64encode(body).decode()]})
        with nullcontext() if format == "msgpack" else pytest.raises(InvalidTask):
            assert await saver.aget_tuple(thread("a")) is not None

    assert (ran, Opened.made) == ([], [])


async def test_a_class_comes_back_only_if_it_is_on_the_list() -> None:
    values = {**empty_checkpoint(), "channel_values": {"note": Note("hello")}, "channel_versions": {"note": 1}}
    found = list[Any]()
    async with TestFleet() as fleet:
        for allowed in ([], [Note], [(__name__, "Note")]):
            saver = CoditectSaver(fleet.client, allowed_msgpack_modules=allowed)
            await saver.aput(thread("a"), values, {}, {})  # type: ignore[arg-type]
            kept = await saver.aget_tuple(thread("a"))
            assert kept is not None
            found.append(kept.checkpoint["channel_values"]["note"])
        with pytest.raises(InputError, match="serializer decides"):
            CoditectSaver(fleet.client, serde=JsonPlusSerializer(), allowed_msgpack_modules=[Note])

    assert found == [{"text": "hello"}, Note("hello"), Note("hello")]


@pytest.mark.parametrize(("size", "kept"), [(LARGEST_BYTES - 1_000, True), (LARGEST_BYTES + 1, False)])
async def test_a_checkpoint_and_a_write_of_the_documented_size_are_kept(size: int, kept: bool) -> None:
    large = {**empty_checkpoint(), "channel_values": {"x": "x" * size}}
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        at = await saver.aput(thread("a"), empty_checkpoint(), {}, {})
        for work in (saver.aput(at, large, {}, {}), saver.aput_writes(at, [("x", "x" * size)], "task")):  # type: ignore[arg-type]
            with nullcontext() if kept else pytest.raises(TooLarge):
                await work


def appended(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*state, *(part for write in writes for part in write)]


@pytest.mark.parametrize("snapshot_frequency", [2, 3, 1_000])
@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
async def test_a_pruned_thread_keeps_the_state_of_its_delta_channels(snapshot_frequency: int, rounds: int) -> None:
    lines = Annotated[list[str], DeltaChannel(appended, snapshot_frequency=snapshot_frequency)]
    graph = StateGraph(TypedDict("Log", {"lines": lines}))  # type: ignore[operator]
    graph.add_node("say", lambda state: {"lines": [f"said {len(state['lines'])}"]})
    graph.add_edge(START, "say")
    graph.add_edge("say", END)
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        compiled = graph.compile(checkpointer=saver)
        for number in range(rounds):
            await compiled.ainvoke({"lines": [f"asked {number}"]}, thread("a"))
        before = (await compiled.aget_state(thread("a"))).values
        all_of_it = len([checkpoint async for checkpoint in saver.alist(thread("a"))])

        await saver.aprune(["a"])
        after = (await compiled.aget_state(thread("a"))).values
        left = len([checkpoint async for checkpoint in saver.alist(thread("a"))])
        goes_on = await compiled.ainvoke({"lines": ["asked again"]}, thread("a"))

    assert after == before
    assert len(before["lines"]) == 2 * rounds
    assert goes_on["lines"][: 2 * rounds] == before["lines"]
    assert left < all_of_it or (rounds, snapshot_frequency) != (4, 2)


async def test_threads_are_copied_pruned_and_cleared_of_runs_from_another_thread_too() -> None:
    async with TestFleet() as fleet:
        saver = CoditectSaver(fleet.client)
        first = await saver.aput(thread("a"), {**empty_checkpoint(), "id": "1"}, {"run_id": "r1"}, {})
        await saver.aput_writes(first, [("x", 1)], "task")
        await saver.aput(first, {**empty_checkpoint(), "id": "2"}, {"run_id": "r2"}, {})

        def clean() -> list[list[str]]:
            ids = list[list[str]]()
            works: list[Callable[[], None]] = [
                lambda: saver.copy_thread("a", "b"),
                lambda: saver.delete_for_runs(["r1"]),
                lambda: saver.copy_thread("a", "c"),
                lambda: saver.prune(["a", "b"], strategy="delete"),
            ]
            for work in works:
                work()
                found = saver.list(None)
                ids.append(
                    sorted(str(kept.config["configurable"]["thread_id"]) + kept.checkpoint["id"] for kept in found)
                )
            return ids

        found = await asyncio.to_thread(clean)
        with pytest.raises(InputError, match="strategy"):
            await saver.aprune(["a"], strategy="odd")

    assert found == [["a1", "a2", "b1", "b2"], ["a2", "b2"], ["a2", "b2", "c2"], ["c2"]]
