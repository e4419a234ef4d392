"""The expected completion time of a task at each agent, by how the agents' recent tasks of its kind went.

::

    expected = (run time + failures · (1 s + usual run time)) · (1 + running / slots)

    run time          the mean of the agent's recent attempts at this kind of task
    failures          the share of them that failed: the task then waits for its retry, and runs once more elsewhere
    usual run time    the mean of the agent that is fastest at this kind of task
    running / slots   how busy the agent is, with the tasks that the sender has given to it since

Both are drawn to the usual (its run time, no failure) as by one attempt more, so an agent without recent attempts is
expected to be as good as the best, and is tried soon. A bad agent is tried at times, since it may have recovered: one
choice of `EXPLORE_EVERY` goes to the agents in turn, whatever is expected of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coditect.model.recent import RecentOutcomes, TaskKind, unknown
from coditect.model.registration import AgentRecord

EXPLORE_EVERY = 20
"""One of this many choices tries out the agents in turn, so that at most 5 % of the tasks pay for what is learned."""
RETRY_MS = 1000.0
"""The milliseconds that a failed attempt costs beside its run: the longest first delay of the default retry policy."""


@dataclass(frozen=True, slots=True)
class ExpectedRun:
    """The expected run time and success of an attempt at a task, at one agent that runs nothing else."""

    ran_ms: float
    """The expected run time of one attempt in milliseconds."""
    success: float
    """The expected share of attempts that complete, in (0, 1]."""
    usual_ms: float
    """The run time of the agent that is fastest at this kind of task, in milliseconds."""

    @property
    def alone_ms(self) -> float:
        """The expected milliseconds until an idle agent has done the task; a failed attempt adds a retry elsewhere."""
        return self.ran_ms + (1 - self.success) * (RETRY_MS + self.usual_ms)

    def among_others_ms(self, record: AgentRecord) -> float:
        """Return the expected milliseconds until the task is done beside the tasks that the agent already runs."""
        return self.alone_ms * (1 + record.load.running / max(1, record.registration.slots))


def expectations(fleet: Sequence[AgentRecord], kind: TaskKind) -> list[ExpectedRun]:
    """Return for each agent, in order, the expected run time and success of an attempt at a task of the kind."""
    recent = [_recent(record, kind) for record in fleet]
    usual_ms = min((one.mean_ms for one in recent if one.attempts), default=0.0)
    return [_expected(one, usual_ms) for one in recent]


def explored(fleet: Sequence[AgentRecord], turn: int) -> AgentRecord | None:
    """Return the next agent to try out, each in turn, if the choice's number `turn` is a multiple of 20; else None."""
    number, rest = divmod(turn, EXPLORE_EVERY)
    return fleet[number % len(fleet)] if fleet and not rest else None


def _recent(record: AgentRecord, kind: TaskKind) -> RecentOutcomes:
    return next((one for one in record.load.recent if one.kind == kind), unknown(kind))


def _expected(recent: RecentOutcomes, usual_ms: float) -> ExpectedRun:
    weight = recent.attempts + 1
    ran_ms = (recent.attempts * recent.mean_ms + usual_ms) / weight
    return ExpectedRun(ran_ms, (recent.attempts * recent.success + 1) / weight, usual_ms)
