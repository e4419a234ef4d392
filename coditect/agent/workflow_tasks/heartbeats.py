"""Heartbeats of workflow tasks: reports to their owners that they have started, and that they still run.

An owner learns of a start only after 100 ms, since most tasks have ended by then, and every 20 s that the task still
runs. An owner that granted an acquire request gets reports from the grant on, though the task may still wait for a
slot; of the start itself only if the owner counts how long the task runs. A task that has run for ten minutes is
reported again, and after the confirm its delivery is acknowledged: the broker would take the delivery back after thirty
minutes. From then on only these heartbeats show that the task lives.
"""

from __future__ import annotations

import asyncio
import logging

from coditect.agent.execution.execution import Execution
from coditect.agent.workflow_tasks.reports import Reports
from coditect.agent.workflow_tasks.stages import BEGUN_FOR_OWNER, Stage, Stages
from coditect.aio.backoff import Backoff
from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError
from coditect.model.ids import AgentId
from coditect.model.task import Owner
from coditect.wire.control import Started, started_message

log = logging.getLogger(__name__)

TELL_SECONDS = 0.1
LONG_SECONDS = 600.0
"""The run time after which a delivery is acknowledged before its task has ended."""
BEAT_SECONDS = 20.0
BACKOFF = Backoff(1.0, 60.0)


class TaskHeartbeats:
    """The workflow tasks that run in one agent process, and the timers of their heartbeats."""

    def __init__(self, reports: Reports, background: Supervisor, clock: Clock, *, agent_id: AgentId) -> None:
        self.stages: Stages = {}
        """The stage of each workflow task that the agent holds, which `ManagedTasks` sets."""
        self._reports = reports
        self._background = background
        self._clock = clock
        self._agent_id = agent_id
        self._loop = asyncio.get_running_loop()
        self._untold: dict[Execution, float] = {}
        self._told: dict[Execution, asyncio.TimerHandle] = {}
        self._look_at: asyncio.TimerHandle | None = None
        self._beat_at: asyncio.TimerHandle | None = None

    def granted(self, execution: Execution) -> None:
        """Start the heartbeats of a task that its owner has granted; its run (`began`) may start much later."""
        self._follow(execution, self._loop.time())

    def began(self, execution: Execution) -> None:
        """Note that a workflow task starts to run; after 100 ms report that, if it still runs and its owner needs it.

        An owner that granted the task gets no report, unless it counts the task's run time.
        """
        if execution in self._told and execution.task.limits.timeout_ms is None:
            return
        self._untold[execution] = now = self._loop.time()
        if self._look_at is None:
            self._look_at = self._loop.call_at(now + TELL_SECONDS, self._look)

    def granted_anew(self, execution: Execution) -> None:
        """Note a new grant, under another fence, of a running task; report its start again if it has a timeout."""
        if self._runs(execution):
            self.began(execution)

    def ended(self, execution: Execution) -> None:
        """Stop the heartbeats of a workflow task that does not run any more. Idempotent."""
        self._untold.pop(execution, None)
        timer = self._told.pop(execution, None)
        if timer is not None:
            timer.cancel()

    def _follow(self, execution: Execution, since: float) -> None:
        """Start the timers of a task: heartbeats to its owner, and the early acknowledgement after ten minutes."""
        self._told[execution] = self._loop.call_at(since + LONG_SECONDS, self._grown_long, execution)
        if self._beat_at is None:
            self._beat_at = self._loop.call_later(BEAT_SECONDS, self._beat)

    def _look(self) -> None:
        """Report the starts of all tasks that began at least 100 ms ago, and schedule the next check."""
        now = self._loop.time()
        by_shard: dict[str, dict[Execution, int]] = {}
        for execution, since in list(self._untold.items()):
            if since + TELL_SECONDS <= now:
                del self._untold[execution]
                if execution not in self._told:
                    self._follow(execution, since)
                at_ms = self._clock.now_ms() - round(1000 * (now - since))
                by_shard.setdefault(_owner(execution).origin, {})[execution] = at_ms
        for origin, heartbeats in by_shard.items():
            self._background.start(self._tell(heartbeats, origin), name="starts")
        self._look_at = self._loop.call_at(now + TELL_SECONDS, self._look) if self._untold else None

    async def _tell(self, heartbeats: dict[Execution, int], origin: str) -> None:
        """Report the starts of tasks to a shard until the broker confirms, or none of the tasks runs any more."""
        pauses = BACKOFF.pauses()
        while running := [self._started(one, at_ms) for one, at_ms in heartbeats.items() if self._runs(one)]:
            try:
                await self._reports.tell(started_message(running), origin)
            except CoditectError as error:
                log.info("Starts were not told", extra={"shard": origin, "reason": str(error)})
            else:
                return
            await asyncio.sleep(next(pauses))

    def _runs(self, execution: Execution) -> bool:
        return execution in self._told and self.stages.get(execution) in BEGUN_FOR_OWNER

    def _started(self, execution: Execution, at_ms: int) -> Started:
        task, owner = execution.task, _owner(execution)
        return Started(owner.workflow, owner.node, owner.fence, task.publication, self._agent_id, task.attempt, at_ms)

    # -- long ones ----------------------------------------------------------------------------------------

    def _grown_long(self, execution: Execution) -> None:
        self._background.start(self.acked_early(execution), name="let go")

    async def acked_early(self, execution: Execution) -> None:
        """Report to the owner that a long task still runs, and acknowledge the task's deliveries early.

        A task that was granted and still waits is not reported: its owner knows from the acquire request which agent
        has it.
        """
        await self._tell({execution: self._clock.now_ms()}, _owner(execution).origin)
        if execution not in self._told or self.stages.get(execution) is Stage.GIVEN_BACK:
            return  # what is given back still needs its delivery
        execution.ack_early()
        log.info("A long task goes on without its delivery", extra={"task_id": execution.task.id})

    def _beat(self) -> None:
        self._reports.alive([_owner(one) for one in self._told])
        self._beat_at = self._loop.call_later(BEAT_SECONDS, self._beat) if self._told else None


def _owner(execution: Execution) -> Owner:
    owner = execution.task.owner
    assert owner is not None, "only workflow tasks come here"
    return owner
