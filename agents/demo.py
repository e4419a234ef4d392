"""The demo: private servers, a fleet of five processes, and real work over this repository, all at once.

``python -m agents.demo`` starts everything below ``.coditect/demo``, submits every task at the same time,
shows the work, writes the documents that the agents made beside it, and stops what it started. It exits with
0 only when nothing was lost and the fleet really worked at once (`demo_summary.Totals.shortfalls`).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from agents.demo_board import Board, show
from agents.demo_summary import Settled, Totals, describe, total
from agents.demo_work import Job, plan_work
from agents.documenter import Docs
from coditect import Client
from coditect.errors import CoditectError, ResultTimeout, Retryable
from coditect.local.plan import Cast, Program, UpPlan, cast
from coditect.local.servers import PrivateServers, private_servers
from coditect.local.state import UpFolder, hold
from coditect.local.supervisor import Supervisor, guarded

FLEET = {
    "reviewer-1": "reviewer.py",
    "reviewer-2": "reviewer.py",
    "tester-1": "tester.py",
    "documenter-1": "documenter.py",
    "summarizer-1": "summarizer.py",
}
_RESULT_WITHIN = "2m"


async def run_demo(root: Path, console: Console) -> Totals:
    """Start, work, show, stop.

    Raises:
        CoditectError: a server or an agent could not be started.
    """
    folder = root / ".coditect" / "demo"
    jobs = await asyncio.to_thread(plan_work, root)
    board = Board()
    with hold(UpFolder(folder)):
        async with private_servers(folder, environ=os.environ) as servers:
            parts = plan_fleet(root, folder, servers)
            async with _agents(parts, folder, console), Client.from_env(_environment(parts)) as client:
                console.print(f"{len(jobs)} tasks for {len(FLEET)} agent processes", highlight=False)
                began = time.monotonic()
                async with show(board, console):
                    settled = await submit_all(client, jobs, board)
                totals = total(settled, time.monotonic() - began)
    await asyncio.to_thread(write_docs, settled, folder / "docs")
    console.print(describe(settled, totals), markup=False, highlight=False, soft_wrap=True)
    console.print(f"The documents are in {(folder / 'docs').relative_to(root)}", highlight=False)
    return totals


def plan_fleet(root: Path, folder: Path, servers: PrivateServers) -> Cast:
    """The agents as children of a supervisor, each of which announces that it is ready."""
    programs = tuple(
        Program(
            name, (sys.executable, "-m", "coditect", "agent", "run", f"agents/{file}"), announces_ready=True
        )
        for name, file in FLEET.items()
    )
    plan = UpPlan(folder, root, programs, amqp_url=servers.amqp_url, redis_url=servers.redis_url)
    return cast(plan, environ=os.environ)


async def submit_all(client: Client, jobs: Sequence[Job], board: Board) -> list[Settled]:
    """Submit every job at the same time and wait for every answer; the order is that of the jobs."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_do(client, job, board)) for job in jobs]
    return [task.result() for task in tasks]


def write_docs(settled: Sequence[Settled], folder: Path) -> None:
    """Write each page that the documenter made; pages of an earlier run are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in settled:
        if isinstance(one.value, Docs):
            (folder / f"{one.value.title}.md").write_text(one.value.markdown, encoding="utf-8")


async def _do(client: Client, job: Job, board: Board) -> Settled:
    settled, task_id = Settled(job), job.subject
    try:
        handle = await client.submit(job.capability, job.input, priority=job.priority)
        task_id = handle.task_id
        board.submitted(task_id, job)
        outcome = await handle.outcome(timeout=_RESULT_WITHIN)
        settled = replace(
            settled,
            agent_id=str(outcome.agent_id or ""),
            started_ms=outcome.started_at_ms or 0,
            finished_ms=outcome.finished_at_ms or 0,
        )
        settled = replace(settled, value=await handle.result(job.output))
    except (ResultTimeout, Retryable) as error:  # no answer: nobody can say what became of it
        settled = replace(settled, error=str(error), lost=True)
    except CoditectError as error:
        settled = replace(settled, error=str(error))
    board.settled(task_id, settled)
    return settled


async def _listen(events: EventStream, board: Board) -> None:
    async for event in events:
        board.heard(event)


@asynccontextmanager
async def _agents(parts: Cast, folder: Path, console: Console) -> AsyncIterator[None]:
    """All agents are ready inside; after it they have drained and ended."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    marker = uuid.uuid4().hex
    supervisor = Supervisor(parts.children, marker=marker, log_folder=UpFolder(folder).log, say=say)
    stop, ready = asyncio.Event(), asyncio.Event()
    with guarded(marker):
        async with asyncio.TaskGroup() as group:
            group.create_task(supervisor.run(stop=stop, ready=ready.set))
            try:
                await ready.wait()
                yield
            finally:
                stop.set()


def _environment(parts: Cast) -> dict[str, str]:
    return {**os.environ, "CODITECT_AMQP_URL": parts.amqp_url, "CODITECT_REDIS_URL": parts.redis_url}


def main() -> int:
    """Run the demo over this repository. Returns the exit code: 0 when it kept every promise."""
    console, code = Console(), 1
    try:
        totals = asyncio.run(run_demo(Path(__file__).resolve().parents[1], console))
        code = 1 if totals.shortfalls else 0
    except* CoditectError as errors:
        for error in _leaves(errors):
            console.print(f"The demo could not run: {error}", markup=False, highlight=False, soft_wrap=True)
    return code


def _leaves(group: BaseExceptionGroup[CoditectError]) -> Iterator[CoditectError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


if __name__ == "__main__":
    sys.exit(main())
