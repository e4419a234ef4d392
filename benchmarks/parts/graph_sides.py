"""The sides that run graphs, ours and others', with their processes: every side has two workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.parts.sides import ECHOER, OTHERS, Side
from benchmarks.programs.driver import PREFETCH
from benchmarks.programs.graphs import GraphOrder
from benchmarks.programs.others import TASKIQ_WORKER, Other
from benchmarks.stage import PYTHON, Program, Stage, agent, python

WORKERS = 2
SIDES = (Side.CODITECT, Side.CELERY, Side.TASKIQ, Side.RQ, Side.DASK)
DRIVERS = {
    Side.CODITECT: "benchmarks.programs.coditect_graphs",
    Side.CELERY: "benchmarks.programs.celery_graphs",
    Side.TASKIQ: "benchmarks.programs.taskiq_graphs",
    Side.RQ: "benchmarks.programs.rq_graphs",
    Side.DASK: "benchmarks.programs.dask_graphs",
}
TASKIQ = replace(
    OTHERS[Side.TASKIQ],
    packages=(*OTHERS[Side.TASKIQ].packages, "taskiq-pipelines"),
    worker=("-m", "taskiq", *TASKIQ_WORKER.split(), "benchmarks.programs.taskiq_graphs:broker"),
)
DASK = Other(("dask", "distributed"), ("-m", "benchmarks.programs.dask_graphs", "worker"), "", {})
DASK_SCHEDULER = python("dask-scheduler", "benchmarks.programs.dask_graphs", "scheduler")
GRAPH_OTHERS: dict[Side, Other] = {**OTHERS, Side.TASKIQ: TASKIQ, Side.DASK: DASK}


@dataclass(frozen=True, slots=True)
class Plane:
    """A running control plane of Coditect's side."""

    pid: int
    program: Program
    """The program that starts the dispatcher again on the same store."""


def dispatcher(stage: Stage, *, store: str | None = None) -> Program:
    """Return a dispatcher as a program, on a new store, or on the given one."""
    place = store or f"sqlite:{stage.fresh_folder('store') / 'ledger.db'}"
    return python("dispatcher", "dispatcher", env={"CODITECT_STORE_URL": place})


def agents(target: str = ECHOER, *, slots: int = PREFETCH) -> list[Program]:
    """Return the two agent processes of Coditect's side as programs."""
    return [agent(target, slots=slots, env={}) for _ in range(WORKERS)]


def workers(side: Side) -> list[Program]:
    """Return the worker processes of another side."""
    named = [("-n", f"worker{number}@%h") if side is Side.CELERY else () for number in range(WORKERS)]
    return [Program(side.value.lower(), (PYTHON, *GRAPH_OTHERS[side].worker, *name)) for name in named]


@asynccontextmanager
async def fleet(
    stage: Stage, target: str = ECHOER, *, slots: int = PREFETCH, store: str | None = None
) -> AsyncIterator[Plane]:
    """Run one dispatcher and two agents of ours during the block, with `slots` slots each; a new store by default."""
    program = dispatcher(stage, store=store)
    async with AsyncExitStack() as running:
        pid = await running.enter_async_context(stage.running(program))
        for agent in agents(target, slots=slots):
            await running.enter_async_context(stage.running(agent))
        yield Plane(pid, program)


@asynccontextmanager
async def staff(stage: Stage, side: Side) -> AsyncIterator[None]:
    """Run the processes that execute a side's nodes during the block."""
    async with AsyncExitStack() as running:
        if side is Side.CODITECT:
            await running.enter_async_context(fleet(stage))
        else:
            schedulers = [DASK_SCHEDULER] if side is Side.DASK else []
            for program in (*schedulers, *workers(side)):
                await running.enter_async_context(stage.running(program))
        yield


async def ordered(stage: Stage, order: GraphOrder, *, seconds: float = 300.0) -> dict[str, Any]:
    """Run the graph client with an order, and return its figures."""
    program = python("graph-client", "benchmarks.programs.graph_client", order.written())
    return await stage.finished(replace(program, seconds=seconds))
