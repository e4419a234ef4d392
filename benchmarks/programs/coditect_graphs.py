"""Graphs through the control plane: the public `Client.start`. The agents are the echoers of the other parts."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.programs.graphs import TEXT, Graph, check_sinks
from benchmarks.programs.workload import ECHO
from coditect import Client, Workflow
from coditect.background import Background
from coditect.listening import EventStream
from coditect.model.workflow.definition import Definition
from coditect.model.workflow.states import WorkflowState

EVENT_SECONDS = 30.0
"""After it the end is asked for."""
LONGEST_SECONDS = 600.0
ENDS = frozenset(f"workflow.{state.value}" for state in WorkflowState if state.terminal)


def definition_of(graph: Graph) -> Definition:
    """The graph as a user writes it."""
    flow = Workflow(graph.name)
    for layer in graph.layers():
        for node in layer:
            value = {"number": node.number, "text": TEXT}
            flow.task(ECHO, value, name=f"n{node.number:06}", after=[f"n{before:06}" for before in node.after])
    return flow.definition()


class CoditectRunner:
    """See `GraphRunner`. The end is told by an event, so that nothing is asked for while the graph runs."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._ended: dict[str, asyncio.Event] = defaultdict(asyncio.Event)

    async def listen(self, events: EventStream) -> None:
        """Hears who ended."""
        async for event in events:
            if event.type in ENDS:
                self._ended[event.subject].set()

    async def run(self, graph: Graph) -> None:
        """See `GraphRunner.run`."""
        run = await self._client.start(definition_of(graph))
        try:
            async with asyncio.timeout(EVENT_SECONDS):
                await self._ended[run.id].wait()
        except TimeoutError:
            await run.wait(timeout=LONGEST_SECONDS)  # an event may be missed
        del self._ended[run.id]
        value = await run.result()
        check_sinks(graph, [value] if graph.widths[-1] == 1 else [value[name] for name in sorted(value)])


@asynccontextmanager
async def open_runner() -> AsyncIterator[CoditectRunner]:
    """A client of the servers that the environment names."""
    async with Client.from_env() as client, client.events("workflow.*") as events, Background() as background:
        runner = CoditectRunner(client)
        background.start(runner.listen(events), name="ends")
        yield runner
