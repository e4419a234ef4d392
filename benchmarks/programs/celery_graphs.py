"""Graphs through Celery's canvas: chains and chords. The worker is `celery_side`'s.

A canvas has no edges between two layers of several nodes: a layer comes after the whole one before it, and an extra
task stands between them. (A group that follows a group directly is supported by name; its result never came.)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from celery import chain, group

from benchmarks.programs.celery_side import echo
from benchmarks.programs.driver import RESULT_SECONDS
from benchmarks.programs.graphs import TEXT, Graph, check_sinks


class CeleryRunner:
    """The runner of graphs through Celery."""

    async def run(self, graph: Graph) -> None:
        """Run a graph as `GraphRunner.run`; Celery blocks the event loop, on which nothing else runs."""
        steps: list[Any] = []
        wide = False
        for layer in graph.layers():
            nodes = [echo.si(node.number, TEXT) for node in layer]
            if wide and len(nodes) > 1:
                steps.append(echo.si(-1, TEXT))
            wide = len(nodes) > 1
            steps.append(group(nodes) if wide else nodes[0])
        value = chain(*steps).apply_async().get(timeout=RESULT_SECONDS)
        check_sinks(graph, value if graph.widths[-1] > 1 else [value])


@asynccontextmanager
async def open_runner() -> AsyncIterator[CeleryRunner]:
    """Yield a client of the servers that the environment names."""
    yield CeleryRunner()
