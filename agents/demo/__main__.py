"""The demo: private servers, a fleet of nine processes, and real work over the project's own repository.

``python -m agents.demo`` starts everything below ``.coditect/demo``, submits every task at the same time, kills an
agent amid them, shows the work, writes the documents that the agents made beside it, runs a workflow over the same
fleet, kills RabbitMQ amid it, has a goal of one sentence done by four kinds of agents, prints the autonomy rate, and
stops what it started. The exit code is 0 only when nothing was lost, the fleet really worked at once, and workflow and
goal completed (`summary.Totals.shortfalls`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from agents.demo.board import Board, show
from agents.demo.fleet import FLEET, RunningFleet, demo_folder, explain, running_fleet
from agents.demo.flow import describe_flow, look_at, read_flow, run_flow
from agents.demo.goal import goal_model, goal_settings, pursue_goal
from agents.demo.summary import NEXT, Settled, Totals, describe, total
from agents.demo.work import DemoTask, announce, plan_work
from agents.documenter import Docs
from coditect import Client, WorkflowRun
from coditect.aio.loop import run_loop
from coditect.errors import CoditectError, ResultTimeout, Retryable
from coditect.messaging.event_stream import EventStream
from coditect.telemetry.logs import JsonLines
from coditect.workflow.states import TaskState

_RESULT_WITHIN = "10m"
_STOPPED = 130
VICTIM = "reviewer-1"
_REVIEWS_DONE = 20  # most of the work is still to do then
_REVIEWERS = 2
_NODES_DONE = 3
_KILL_CHECK_SECONDS = 0.05


async def run_demo(root: Path, console: Console, *, keep: bool = False) -> Totals:
    """Start the demo's fleet, run its tasks, workflow and goal, and stop the fleet; return the run's counts and times.

    The fleet is stopped also when the demo is canceled; with `keep` it stays up after its work until then.

    Raises:
        CoditectError: a server or an agent could not be started.
    """

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    began = time.monotonic()
    with demo_folder(root) as folder:
        _log_to(folder / "log" / "demo.log")
        async with asyncio.TaskGroup() as group:
            planning = group.create_task(asyncio.to_thread(plan_work, root))
            async with (
                goal_model() as model_url,
                running_fleet(root, folder, settings=goal_settings(root, model_url), say=say) as fleet,
                Client.from_env(fleet.environ) as client,
            ):
                jobs = await planning
                say(f"The dashboard is at {fleet.dashboard}")
                say(f"{announce(jobs)}, for {len(FLEET)} agent processes")
                settled, wall_seconds = await _work(client, jobs, console, kill=partial(kill_agent, fleet, say=say))
                releases = (folder / "releases").relative_to(root)
                flow = await run_flow(
                    client,
                    read_flow(root),
                    {"folder": str(releases)},
                    say=say,
                    meanwhile=partial(kill_broker, fleet, say=say),
                )
                totals = total(settled, wall_seconds, workflow=flow.state)
                say(describe_flow(flow))
                say(describe(settled, totals))
                totals = replace(totals, goal=await pursue_goal(client, fleet.environ, root, say=say))
                if keep:
                    say(f"Everything stays up, with the dashboard at {fleet.dashboard}; Ctrl-C stops it.")
                    await _canceled()
        await asyncio.to_thread(write_docs, settled, folder / "docs")
        say(f"\nNOT REACHED: {totals.goal}" if totals.goal else "")
        say(f"Everything is stopped again, {time.monotonic() - began:.1f} s after the start.")
        say(f"The documents that the agents wrote are in {(folder / 'docs').relative_to(root)}, releases in {releases}")
        say(NEXT)
    return totals


async def _canceled() -> None:
    """Wait until this asyncio task is canceled, and undo the cancellation, so that the demo ends in the normal way."""
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    me = asyncio.current_task()
    assert me is not None
    me.uncancel()


def _log_to(file: Path) -> None:
    """Write the log of the demo's own process to a file, since the demo's display needs the terminal."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


async def _work(
    client: Client, jobs: Sequence[DemoTask], console: Console, *, kill: Callable[[Board], Coroutine[Any, Any, None]]
) -> tuple[list[Settled], float]:
    """Submit the demo's tasks and kill an agent meanwhile; return how each task ended, and the seconds in all."""
    board = Board()
    async with client.events("task.*") as events, asyncio.TaskGroup() as group:
        listener = group.create_task(_listen(events, board))
        killer = group.create_task(kill(board))
        async with show(board, console):
            settled = await submit_all(client, jobs, board)
        listener.cancel()
        killer.cancel()
    return settled, time.monotonic() - board.began


async def _listen(events: EventStream, board: Board) -> None:
    async for event in events:
        board.heard(event)


async def submit_all(client: Client, jobs: Sequence[DemoTask], board: Board) -> list[Settled]:
    """Submit all tasks at the same time, and return how each ended, in the order of submission."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_do(client, job, board)) for job in jobs]
    return [task.result() for task in tasks]


async def _do(client: Client, job: DemoTask, board: Board) -> Settled:
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


async def kill_agent(fleet: RunningFleet, board: Board, *, say: Callable[[str], None]) -> None:
    """Kill one reviewer process with -9, once 20 reviews are done, some by each reviewer; the supervisor restarts it.

    The kill waits until every reviewer has answered something, also on a machine that gave one of them no time at
    first.
    """
    while not _amid_reviews(board):  # noqa: ASYNC110 - the board has no event: it is looked at, as by the screen
        await asyncio.sleep(_KILL_CHECK_SECONDS)
    process = fleet.process_of(VICTIM)
    if process is not None:
        os.kill(process.pid, signal.SIGKILL)
        say(f"KILLED {VICTIM} with -9, {board.open} tasks still to do: what it had in hand goes to another agent")


def _amid_reviews(board: Board) -> bool:
    return board.done("code.review") >= _REVIEWS_DONE and board.agents("code.review") >= _REVIEWERS


async def kill_broker(fleet: RunningFleet, run: WorkflowRun, *, say: Callable[[str], None]) -> None:
    """Kill RabbitMQ with -9 once three nodes of a workflow completed, and start it again; spare a user's own broker.

    Nothing is killed when the workflow ends before.
    """
    if fleet.servers is None:
        say("RabbitMQ is a server of yours (CODITECT_AMQP_URL): the demo does not kill it")
        return
    while (states := [row.state for row in await look_at(run)]).count(TaskState.COMPLETED) < _NODES_DONE:
        if states and all(state.terminal for state in states):
            return
        await asyncio.sleep(_KILL_CHECK_SECONDS)
    await fleet.servers.kill_broker()
    say("KILLED RabbitMQ with -9 amid the workflow: its queues are on disk, the workflow is in the ledger")
    await fleet.servers.start_broker()
    say("RabbitMQ is back: agents, dispatcher and client connect again by themselves")


def write_docs(settled: Sequence[Settled], folder: Path) -> None:
    """Write into a folder each page that the documenter agent returned, and overwrite pages of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in settled:
        if isinstance(task.value, Docs):
            (folder / f"{task.value.title}.md").write_text(task.value.markdown, encoding="utf-8")


async def _stopped_by_signals(root: Path, console: Console, *, keep: bool) -> Totals:
    """Run the demo, and cancel it on SIGINT, SIGTERM and SIGHUP, so that it stops all that it started.

    A second signal cancels the stopping as well.
    """
    me = asyncio.current_task()
    assert me is not None

    def stop() -> None:
        console.print("Stopping")
        me.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return await run_demo(root, console, keep=keep)


def main() -> int:
    """Run the demo over the repository, and return the exit code: 0 when the demo reached all its goals."""
    parser = ArgumentParser(prog="python -m agents.demo", description="Watch a fleet of agents do its work.")
    parser.add_argument("--keep", action="store_true", help="keep the fleet and its dashboard up until Ctrl-C")
    keep, console, code = parser.parse_args().keep, Console(), 1
    try:
        totals = run_loop(_stopped_by_signals(Path(__file__).resolve().parents[2], console, keep=keep))
        code = 1 if totals.shortfalls else 0
    except* CoditectError as errors:
        console.print(explain(errors, title="The demo could not run"), markup=False, highlight=False, soft_wrap=True)
    except* asyncio.CancelledError:
        console.print("Stopped, with everything that was started.")
        code = _STOPPED
    return code


if __name__ == "__main__":
    sys.exit(main())
