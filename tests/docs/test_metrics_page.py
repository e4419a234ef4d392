"""The table of the metrics is what the code declares, and what each program offers."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from itertools import product

import pytest

from coditect import Agent, Client
from coditect.agent.program import Host, running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import DEFAULTS
from coditect.telemetry import names
from coditect.telemetry.metrics import MemoryMetrics, Metric, Series
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.taskgraph.memory import MemoryTaskGraph
from tests.docs.pages import section, table_rows
from tests.servers import ROOT

METRICS = {metric.name: metric for metric in vars(names).values() if isinstance(metric, Metric)}
ROWS = {row[0].strip("`"): row[1:] for row in table_rows(section(ROOT / "docs" / "operations.md", "Metrics"))}


def test_every_metric_is_documented_with_its_labels() -> None:
    labels = {
        name: ", ".join(f"`{label}`: {', '.join(values)}" for label, values in metric.labels.items())
        for name, metric in METRICS.items()
    }

    assert {name: row[1:] for name, row in ROWS.items()} == {
        name: [labels[name], metric.meaning] for name, metric in METRICS.items()
    }


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_a_name_is_one_that_prometheus_advises(metric: Metric) -> None:
    assert re.fullmatch(r"coditect(_[a-z]+)+", metric.name)
    assert not re.search(r"_(milli|micro|kilo|mega|ms|minutes|percent)", metric.name)
    assert metric.labels.keys().isdisjoint({"task_id", "agent_id", "workflow_id"})
    assert all(len(values) == len(set(values)) > 1 for values in metric.labels.values())


async def test_each_program_offers_what_the_table_says_with_every_label() -> None:
    server, registry, clock = MemoryServer(), MemoryRegistry(), SystemClock()
    metrics = {"agent": MemoryMetrics(), "client": MemoryMetrics()}
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(MemoryBroker(server, name="all"))
        options, graph = DispatcherOptions(shards=1), MemoryTaskGraph()
        running = running_dispatcher(broker=broker, registry=registry, clock=clock, graph=graph, options=options)
        metrics["dispatcher"] = (await enter(running)).metrics
        await enter(
            running_agent(
                Agent("a"),
                broker=broker,
                registry=registry,
                settings=DEFAULTS,
                clock=clock,
                drain=asyncio.Event(),
                host=Host(metrics=metrics["agent"]),
            )
        )
        await enter(Client(broker, registry, metrics=metrics["client"]))

        offered = {program: set(one.samples()) for program, one in metrics.items()}

    assert offered == {
        program: {
            series
            for name, (programs, *_) in ROWS.items()
            if program in programs.split(", ")
            for series in _all_series(METRICS[name])
        }
        for program in metrics
    }


def _all_series(metric: Metric) -> list[Series]:
    labels = [[(label, value) for value in values] for label, values in sorted(metric.labels.items())]
    return [(metric.name, labeled) for labeled in product(*labels)]
