"""`examples/parallel_docs.yaml`: three agents write at once, beside the same work one after the other.

Once bound by the processor, on two cores, and once where each writer waits for a model, which a stand-in is.
"""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from agents.demo.docs import AGENTS, FLOW, introduce
from agents.tools.model_stub import model_stub
from benchmarks.parts.graph_sides import dispatcher
from benchmarks.size import Size
from benchmarks.stage import Stage, python
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect import Client
from coditect.workflow.definition import After, Definition
from coditect.workflow.documents.file import load_workflow

NAME = "parallel-docs"
CORES = 2
MODEL_SECONDS = 2.0
BOUND_BY: dict[str, dict[str, Any]] = {
    "processor": {"path": "dispatcher"},
    "model": {"path": "coditect/goals", "introduction": True},
}
"""The inputs: many modules without a model, and few modules with one."""
LEAST_RATIO = {"processor": 1.5, "model": 2.5}


@dataclass(frozen=True, slots=True)
class DocsTimes:
    """The seconds of each run of one input, from the start of the workflow to its end."""

    at_once: tuple[float, ...]
    one_by_one: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as fast it is at once, by the medians."""
        return median(self.one_by_one) / median(self.at_once)


def one_by_one(flow: Definition) -> Definition:
    """Return a workflow in which each node without a predecessor follows the one before it."""
    first = [node for node in flow.nodes if not node.after]
    chained = [replace(node, after=(After(before.name),)) for before, node in pairwise(first)]
    return replace(flow, nodes=(first[0], *chained, *flow.nodes[len(first) :]))


async def measure(stage: Stage, size: Size) -> dict[str, DocsTimes]:
    """Run both workflows with both inputs in turn, on the same fleet, after one run that does not count."""
    flows = {"at_once": load_workflow(FLOW), "one_by_one": one_by_one(load_workflow(FLOW))}
    seconds: dict[str, dict[str, list[float]]] = {bound: {way: [] for way in flows} for bound in BOUND_BY}
    async with AsyncExitStack() as running:
        url = await running.enter_async_context(model_stub(introduce, seconds=MODEL_SECONDS))
        await running.enter_async_context(stage.running(dispatcher(stage)))
        env = {"CODITECT_CHAT_URL": url, "CODITECT_CHAT_MODEL": "stand-in"}
        for name, arguments in AGENTS.items():
            program = python(name, "coditect", "agent", "run", *arguments, env=env)
            await running.enter_async_context(stage.running(program))
        client = await running.enter_async_context(Client.connecting(stage.settings))
        folder = str(stage.fresh_folder("sites").relative_to(os.getcwd()))  # noqa: PTH109 - the agents' folder, too
        for bound, parameters in BOUND_BY.items():
            for number in range(size.rounds + 1):
                for way, flow in flows.items():
                    took = await _run(client, flow, {**parameters, "folder": folder})
                    if number:
                        seconds[bound][way].append(took)
    return {bound: DocsTimes(tuple(of["at_once"]), tuple(of["one_by_one"])) for bound, of in seconds.items()}


async def _run(client: Client, flow: Definition, parameters: dict[str, Any]) -> float:
    began = time.monotonic()
    await (await client.start(flow, parameters)).result(timeout="2m")
    return time.monotonic() - began


def verdicts(found: dict[str, DocsTimes]) -> tuple[Verdict, ...]:
    """Compare the ratio of each input with its bound."""
    return tuple(
        Verdict(f"one by one / at once, bound by the {bound}", times.ratio, Bound.AT_LEAST, LEAST_RATIO[bound], "x")
        for bound, times in found.items()
    )


def figures(found: dict[str, DocsTimes]) -> tuple[Figure, ...]:
    """Return the medians of all runs."""
    return tuple(
        Figure(f"{way}, bound by the {bound}", median(values), "s")
        for bound, times in found.items()
        for way, values in (("at once", times.at_once), ("one by one", times.one_by_one))
    )


async def run(stage: Stage, size: Size) -> Findings:
    """Measure documents that are written at once, and judge the gain."""
    found = await measure(stage, size)
    cores = len(os.sched_getaffinity(0))
    notes = () if cores >= CORES else (f"the bound of the processor is for {CORES} cores; this machine has {cores}",)
    return Findings(
        NAME, verdicts(found), figures(found), {bound: asdict(of) for bound, of in found.items()}, notes=notes
    )
