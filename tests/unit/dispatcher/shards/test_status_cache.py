"""State queries from memory: as fresh as the last commit, and the ledger's where memory has nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from unittest.mock import patch

from coditect import Agent, Workflow
from coditect.agent.program import running_agent
from coditect.aio.clock import SystemClock
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.client.client import Client
from coditect.client.control_plane import asking
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings
from coditect.wire.control import Verb
from coditect.workflow.definition import Node
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.rows import RunRecord, WorkflowRecord
from dispatcher.program import DispatcherOptions, running_dispatcher
from dispatcher.shards.status_cache import StatusCache
from dispatcher.store.memory import MemoryDatabase
from tests.support import eventually

HEAD = WorkflowRecord(0, "release", "", "", 1, 1_000)


def test_nothing_is_kept_of_what_nobody_asked_for() -> None:
    status_cache = StatusCache()

    status_cache.note([("w", RunRecord(WorkflowState.RUNNING))])
    status_cache.follow("w", HEAD)

    assert status_cache.get("w") is None


def test_what_was_asked_for_is_known_as_it_was_committed_last() -> None:
    status_cache = StatusCache()
    status_cache.follow("w", HEAD)
    first, last = RunRecord(WorkflowState.RUNNING, open=2), RunRecord(WorkflowState.RUNNING, open=1)

    status_cache.note([("w", first), ("other", first)])
    status_cache.note([("w", last)])

    assert status_cache.get("w") == (HEAD, last)
    assert status_cache.get("other") is None


def test_the_end_is_read_from_the_ledger() -> None:
    status_cache = StatusCache()
    status_cache.follow("w", HEAD)
    status_cache.note([("w", RunRecord(WorkflowState.RUNNING))])

    status_cache.note([("w", RunRecord(WorkflowState.COMPLETED))])

    assert status_cache.get("w") is None


def test_too_many_are_forgotten_and_read_again() -> None:
    status_cache = StatusCache(most=2)
    for workflow in ("a", "b", "c"):
        status_cache.follow(workflow, HEAD)
    run = RunRecord(WorkflowState.RUNNING)

    status_cache.note([("a", run), ("b", run), ("c", run)])

    assert [status_cache.get(workflow) is None for workflow in ("a", "b", "c")] == [True, True, False]


async def test_who_asks_again_and_again_is_told_each_commit_without_the_ledger() -> None:
    server, registry, clock = MemoryServer(), MemoryRegistry(), SystemClock()
    may_end = asyncio.Semaphore(0)
    worker = Agent("worker")

    @worker.capability("over.view")
    async def work(number: int) -> None:
        await may_end.acquire()

    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(MemoryDatabase())
        own = await enter(MemoryBroker(server, name="dispatcher"))
        plane = running_dispatcher(
            broker=own, registry=registry, clock=clock, database=database, options=DispatcherOptions(shards=1)
        )
        dispatcher = await enter(plane)
        broker = await enter(MemoryBroker(server, name="worker"))
        await enter(
            running_agent(
                worker, broker=broker, registry=registry, settings=Settings(), clock=clock, drain=asyncio.Event()
            )
        )
        control = await enter(asking(own, clock, name="asks"))
        client = await enter(Client(await enter(MemoryBroker(server, name="client")), registry, clock=clock))
        flow = Workflow("steps")
        before: list[Node] = []
        for number in range(4):
            before = [flow.task("over.view", number, name=f"n{number}", after=before)]
        run = await client.start(flow)

        async def ended() -> int:
            return (await run.overview()).counts.get(TaskState.COMPLETED, 0)

        for completed in range(4):
            await eventually(partial(_is, ended, completed))
            assert (dispatcher.ownership.workers[0].status_cache.get(run.id) is not None) == (completed > 0)
            with patch.object(database, "ask", wraps=database.ask) as ledger:
                told = await control.ask(Verb.RESULT, {"workflow": run.id})
                assert told == {"state": "running", "reason": "", "value": None, "failure": None}
                assert not completed or not ledger.called
                first = await control.ask(Verb.RESULT, {"workflow": run.id, "node": "n0"})
                assert (first["state"] == "completed") == (completed > 0)
                assert ledger.called
            may_end.release()
        assert await run.wait(timeout="10s") is WorkflowState.COMPLETED
        assert await ended() == 4
        assert dispatcher.ownership.workers[0].status_cache.get(run.id) is None


async def _is(ask: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await ask() == wanted
