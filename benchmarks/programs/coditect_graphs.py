"""Graphs through the control plane: the public `Client.start`. The agents are the echoers of the other parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.programs.graphs import TEXT, Graph, check_sinks
from benchmarks.programs.workload import ECHO
from coditect import Client, Workflow
from coditect.workflow.definition import Definition

LONGEST_SECONDS = 600.0


def definition_of(graph: Graph) -> Definition:
    """Return the workflow definition of a graph, built as a user builds it."""
    flow = Workflow(graph.name)
    for layer in graph.layers():
        for node in layer:
            value = {"number": node.number, "text": TEXT}
            flow.task(ECHO, value, name=f"n{node.number:06}", after=[f"n{before:06}" for before in node.after])
    return flow.definition()


class CoditectRunner:
    """The runner of graphs through Coditect's control plane."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, graph: Graph) -> None:
        """Run a graph as a workflow, as `GraphRunner.run`."""
        run = await self._client.start(definition_of(graph))
        value = await run.result(timeout=LONGEST_SECONDS)
        check_sinks(graph, [value] if graph.widths[-1] == 1 else [value[name] for name in sorted(value)])


@asynccontextmanager
async def open_runner() -> AsyncIterator[CoditectRunner]:
    """Yield a client of the servers that the environment names."""
    async with Client.from_env() as client:
        yield CoditectRunner(client)
