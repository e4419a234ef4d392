"""The ids in each log line: of the task and workflow that the code works on, of the agent, and of the trace.

They are kept in context variables, which handlers, threads and processes of a task inherit. Only a line that is written
reads them, so that a task that logs nothing pays for one assignment.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextvars import ContextVar

from coditect.model.ids import AgentId
from coditect.model.task import Task
from coditect.telemetry.tracing.port import CURRENT, SKIPPED, read_traceparent

CURRENT_TASK: ContextVar[Task | None] = ContextVar("coditect_task", default=None)
"""The task that the running code works on."""
CURRENT_AGENT: ContextVar[AgentId | None] = ContextVar("coditect_agent", default=None)
"""The agent process in which the code runs."""


class ContextFields(logging.Filter):
    """A filter of a log handler that adds the present task's, workflow's, agent's and trace's ids to every record.

    What the record itself names stays as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the known ids to a log record; always return True, so that the record is logged."""
        for name, value in _context():
            if name not in vars(record):
                setattr(record, name, value)
        return True


def _context() -> Iterator[tuple[str, str]]:
    task, agent_id, span = CURRENT_TASK.get(), CURRENT_AGENT.get(), CURRENT.get()
    place = span if span is not None else read_traceparent(None if task is None else task.traceparent)
    if place is not None and place is not SKIPPED:
        yield "trace_id", f"{place.trace_id:032x}"
        yield "span_id", f"{place.span_id:016x}"
    if task is not None and task.id is not None:
        yield "task_id", task.id
    if task is not None and task.owner is not None:
        yield "workflow_id", task.owner.workflow
    if agent_id is not None:
        yield "agent_id", agent_id
