"""A process that runs a LangGraph graph as far as it goes: `graph_process.py blocking|async THREAD [JSON]`."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt

from coditect import Client, SyncClient
from coditect.integrations.langgraph import CoditectSaver, task_node


class Draft(TypedDict, total=False):
    text: str
    length: int
    verdict: str


def approve(state: Draft) -> Draft:
    return {"verdict": interrupt({"length": state["length"]})}


def graph_of(client: Client | SyncClient) -> Any:
    graph = StateGraph(Draft)
    graph.add_node("count", task_node(client, "slow.count", reads="text", writes="length"))
    graph.add_node("approve", approve)
    graph.add_edge(START, "count")
    graph.add_edge("count", "approve")
    graph.add_edge("approve", END)
    return graph.compile(checkpointer=CoditectSaver(client))


def main() -> None:
    kind, thread, *given = sys.argv[1:]
    asked = json.loads(given[0]) if given else None
    value = Command(resume=asked["resume"]) if asked and "resume" in asked else asked
    config = {"configurable": {"thread_id": thread}}
    if kind == "blocking":
        with Client.sync() as client:
            say(graph_of(client).invoke(value, config, durability="sync"))
    else:
        asyncio.run(run(value, config))


async def run(value: Any, config: Any) -> None:
    async with Client.from_env() as client:
        say(await graph_of(client).ainvoke(value, config, durability="sync"))


def say(result: dict[str, Any]) -> None:
    paused = [one.value for one in result.pop("__interrupt__", ())]
    print(json.dumps(result | {"paused": paused}), flush=True)
    if paused:
        sys.stdin.read()  # until it is killed


if __name__ == "__main__":
    main()
