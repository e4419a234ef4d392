"""The table of the metrics is what the code declares, and what each program offers."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from itertools import product

from chaos.simulated_task_graph import MemoryTaskGraph
from coditect import Agent, Breaker, Client, Context
from coditect.agent.program import running_agent
from coditect.agent.services import Host
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import DEFAULTS
from coditect.telemetry import metrics as telemetry
from coditect.telemetry.metrics import CERTIFICATE_END, STORE_BYTES, MemoryMetrics, Metric, Series
from dispatcher.program import DispatcherOptions, running_dispatcher
from tests.docs.pages import section, table_rows
from tests.servers import ROOT
from tests.support import eventually

METRICS = {metric.name: metric for metric in vars(telemetry).values() if isinstance(metric, Metric)}
ROWS = {row[0].strip("`"): row[1:] for row in table_rows(section(ROOT / "docs" / "operations.md", "Metrics"))}


def test_every_metric_is_documented_with_its_labels() -> None:
    labels = {
        name: ", ".join(
            f"`{label}`: {', '.join(values)}" if values else f"`{label}`" for label, values in metric.labels.items()
        )
        for name, metric in METRICS.items()
    }

    assert {name: row[1:] for name, row in ROWS.items()} == {
        name: [labels[name], metric.meaning] for name, metric in METRICS.items()
    }


def test_names_are_what_prometheus_advises() -> None:
    for name, metric in METRICS.items():
        assert re.fullmatch(r"coditect(_[a-z]+)+", name)
        assert not re.search(r"_(milli|micro|kilo|mega|ms|minutes|percent)", name)
        assert metric.labels.keys().isdisjoint({"task_id", "agent_id", "workflow_id"}), name
        assert all(len(values) == len(set(values)) != 1 for values in metric.labels.values()), name
        assert tuple(sorted(metric.buckets)) == metric.buckets, name


async def test_each_program_offers_what_the_table_says_with_every_label() -> None:
    server, registry, clock = MemoryServer(), MemoryRegistry(), SystemClock()
    metrics = {program: MemoryMetrics() for program in ("agent", "client", "dispatcher")}
    agent, breaker = Agent("a"), Breaker("api")

    @agent.capability("lock.hold", breaker=breaker)
    async def hold(task: None, ctx: Context) -> None:
        async with ctx.lock("one"):
            pass

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        broker = await enter(MemoryBroker(server, name="all"))
        options, graph = DispatcherOptions(shards=1, metrics=metrics["dispatcher"]), MemoryTaskGraph()
        await enter(running_dispatcher(broker=broker, registry=registry, clock=clock, graph=graph, options=options))
        await enter(
            running_agent(
                agent,
                broker=broker,
                registry=registry,
                settings=DEFAULTS,
                clock=clock,
                drain=asyncio.Event(),
                host=Host(metrics=metrics["agent"]),
            )
        )
        client = await enter(Client(broker, registry, metrics=metrics["client"]))
        async with client.lock("one"):
            pass
        await (await client.submit("lock.hold")).result()
        await eventually(lambda: "coditect_dead_letters" in _names(metrics["dispatcher"]))

        offered = {program: _in_short(one) for program, one in metrics.items()}

    assert offered == {
        program: {
            series
            for name, (programs, *_) in ROWS.items()
            if program in programs.split(", ") and name not in ELSEWHERE
            for series in _all_series(METRICS[name])
        }
        for program in metrics
    }


ELSEWHERE = {CERTIFICATE_END.name, STORE_BYTES.name}
"""The metrics that only connections with TLS have, or only a store in a file."""


def _names(metrics: MemoryMetrics) -> set[str]:
    return {name for name, _ in metrics.samples()}


def _in_short(metrics: MemoryMetrics) -> set[Series]:
    """The series that are offered, with a star for each value of a label that the fleet makes up."""
    return {
        (name, tuple((label, value if METRICS[name].labels[label] else "*") for label, value in labels))
        for name, labels in metrics.samples()
    }


def _all_series(metric: Metric) -> list[Series]:
    labels = [[(label, value) for value in values or "*"] for label, values in sorted(metric.labels.items())]
    return [(metric.name, labeled) for labeled in product(*labels)]
