"""Large results in a workflow: the ledger keeps their claims, agents and clients see the values."""

from __future__ import annotations

from coditect import Agent, From, Workflow
from coditect.settings.settings import Settings
from coditect.testing import TestFleet

LARGE = 2_000_000


def _writer() -> Agent:
    agent = Agent("writer")

    @agent.capability("text.make")
    async def make(size: int) -> str:
        return "x" * size

    @agent.capability("text.count")
    async def count(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    return agent


async def test_large_results_go_from_node_to_node_and_to_whoever_asks() -> None:
    flow = Workflow("large")
    one = flow.task("text.make", LARGE, name="one")
    many = flow.map("text.make", From("input"), From("item"), limit=3, name="many")
    flow.task("text.count", [From("results.one"), From("results.many[1]")], name="counted", after=[one, many])

    async with TestFleet([_writer()], settings=Settings(blob_url="memory://results")) as fleet:
        run = await fleet.client.start(flow, [5, LARGE + 1, 7])

        assert await run.result() == [LARGE, LARGE + 1]
        assert await run.result(str, node="one") == "x" * LARGE
        assert [len(text) for text in await run.result(list[str], node="many")] == [5, LARGE + 1, 7]
