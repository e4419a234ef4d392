"""The demo's kills: an agent process amid its tasks, and RabbitMQ amid the workflow; both are restarted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from agents.demo.board import Board
from agents.demo.fleet import RunningFleet
from agents.demo.flow import look_at
from coditect import Run
from coditect.workflow.states import TaskState

VICTIM = "reviewer-1"
_CAPABILITY = "code.review"
_REVIEWS_DONE = 20  # most of the work is still to do then
_REVIEWERS = 2
_NODES_DONE = 3
_LOOK_SECONDS = 0.05

Say = Callable[[str], None]


async def kill_agent(fleet: RunningFleet, board: Board, *, say: Say) -> None:
    """Kill one reviewer process with -9, once 20 reviews are done, some by each reviewer; the supervisor restarts it.

    The kill waits until every reviewer has answered something, also on a machine that gave one of them no time at
    first.
    """
    while not _amid_reviews(board):  # noqa: ASYNC110 - the board has no event: it is looked at, as by the screen
        await asyncio.sleep(_LOOK_SECONDS)
    process = fleet.process_of(VICTIM)
    if process is not None:
        os.kill(process.pid, signal.SIGKILL)
        say(f"KILLED {VICTIM} with -9, {board.open} tasks still to do: what it had in hand goes to another agent")


def _amid_reviews(board: Board) -> bool:
    return board.done(_CAPABILITY) >= _REVIEWS_DONE and board.agents(_CAPABILITY) >= _REVIEWERS


async def kill_broker(fleet: RunningFleet, run: Run, *, say: Say) -> None:
    """Kill RabbitMQ with -9 once three nodes of a workflow completed, and start it again; spare a user's own broker.

    Nothing is killed when the workflow ends before.
    """
    if fleet.servers is None:
        say("RabbitMQ is a server of yours (CODITECT_AMQP_URL): the demo does not kill it")
        return
    while (states := await _states(run)).count(TaskState.COMPLETED) < _NODES_DONE:
        if states and all(state.terminal for state in states):
            return
        await asyncio.sleep(_LOOK_SECONDS)
    await fleet.servers.kill_broker()
    say("KILLED RabbitMQ with -9 amid the workflow: its queues are on disk, the workflow is in the ledger")
    await fleet.servers.start_broker()
    say("RabbitMQ is back: agents, dispatcher and client connect again by themselves")


async def _states(run: Run) -> list[TaskState]:
    return [row.state for row in await look_at(run)]
