"""A fleet on the in-memory twins whose processes make spans, and the spans that they made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler
from opentelemetry.trace import SpanContext

from coditect.agent.declaration import Agent
from coditect.agent.program import running_agent
from coditect.agent.services import Host
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.telemetry.otlp import OtlpTracing
from dispatcher.program import DispatcherOptions, running_dispatcher

Tree = tuple[str, tuple["Tree", ...]]


@dataclass(frozen=True, slots=True)
class Spans:
    """The spans that the processes of a scene have ended."""

    exporter: InMemorySpanExporter

    def all(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()

    def named(self, beginning: str) -> list[ReadableSpan]:
        found = [one for one in self.all() if one.name.startswith(beginning)]
        return sorted(found, key=lambda one: one.start_time or 0)

    def trees(self) -> list[Tree]:
        """The names of the spans, each with those below it; the roots have no parent among the spans."""
        known = set(map(span_id, self.all()))
        return sorted(self._below(one) for one in self.all() if parent_id(one) not in known)

    def _below(self, span: ReadableSpan) -> Tree:
        below = [one for one in self.all() if parent_id(one) == span_id(span)]
        return span.name, tuple(sorted(map(self._below, below)))

    def traces(self) -> set[int]:
        return {context(one).trace_id for one in self.all()}


def tracing(exporter: InMemorySpanExporter, sampler: Sampler = DEFAULT_ON) -> OtlpTracing:
    return OtlpTracing(SimpleSpanProcessor(exporter), sampler=sampler, resource=Resource({"service.name": "test"}))


@dataclass(frozen=True, slots=True)
class Scene:
    """A client beside the agents, and what is looked at."""

    client: Client
    spans: Spans
    server: MemoryServer
    broker: MemoryBroker

    async def settled(self, *beginnings: str, many: int = 1) -> None:
        """Wait until so many spans of each beginning have ended."""
        async with asyncio.timeout(10):
            while any(len(self.spans.named(one)) < many for one in beginnings):
                await asyncio.sleep(0.005)


@asynccontextmanager
async def traced_fleet(
    agents: Iterable[Agent], *, dispatcher: bool = False, client_sampler: Sampler = DEFAULT_ON
) -> AsyncIterator[Scene]:
    exporter = InMemorySpanExporter()
    made = tracing(exporter)
    server, settings, clock = MemoryServer(), Settings(beat_seconds=0.1, drain_seconds=1), SystemClock()
    registry = MemoryRegistry(now=asyncio.get_running_loop().time)
    async with AsyncExitStack() as stack:
        if dispatcher:
            broker = await stack.enter_async_context(MemoryBroker(server, name="dispatcher"))
            running = running_dispatcher(
                broker=broker, registry=registry, clock=clock, options=DispatcherOptions(shards=1, tracing=made)
            )
            await stack.enter_async_context(running)
        for agent in agents:
            broker = await stack.enter_async_context(MemoryBroker(server, name=agent.name))
            await stack.enter_async_context(
                running_agent(
                    agent,
                    broker=broker,
                    registry=registry,
                    settings=settings,
                    clock=clock,
                    drain=asyncio.Event(),
                    host=Host(workers=None, tracing=made),
                )
            )
        broker = await stack.enter_async_context(MemoryBroker(server, name="client"))
        client = Client(broker, registry)
        client._requests.tracing = tracing(exporter, client_sampler)
        await stack.enter_async_context(client)
        yield Scene(client, Spans(exporter), server, broker)


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> Iterator[int]:
    return (link.context.span_id for link in span.links)


def context(span: ReadableSpan) -> SpanContext:
    found: SpanContext | None = span.context
    assert found is not None
    return found


def span_id(span: ReadableSpan) -> int:
    found: int = context(span).span_id
    return found


def parent_id(span: ReadableSpan) -> int | None:
    """The id of the span above, which need not be among those that ended."""
    return None if span.parent is None else span.parent.span_id
