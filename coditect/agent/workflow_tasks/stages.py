"""The stages of a workflow task in an agent process, from the acquire request to the run or the return to its owner."""

from __future__ import annotations

from enum import Enum, auto

from coditect.agent.execution.execution import Execution


class Stage(Enum):
    """The stage of a workflow task in an agent: asking its owner, granted, waiting for a process, running, given back.

    ::

        fresh delivery ────────────────────► RUNNING ◄──► WAITING
        any other ──► ASKING ──► GRANTED ──►─┘  │            │
                                    └───────────┴────────────┴──► GIVEN_BACK

    A task without a stage is not with the agent, or its deliveries are settled without a run.
    """

    ASKING = auto()
    """The owner is asked whether the task may run here; deliveries that come meanwhile wait for the same answer."""
    GRANTED = auto()
    """The owner has granted the task, which waits for a slot."""
    WAITING = auto()
    """The task, a suspect, has begun for its owner, and waits for a place for its process."""
    RUNNING = auto()
    """The task's handler runs, or its result is on the way to the owner."""
    GIVEN_BACK = auto()
    """The agent drains, and asks the owner to start the task again."""


UNBEGUN = (Stage.GRANTED, Stage.WAITING)
"""The stages in which the handler has not begun, and a drain cancels the wait."""
BEGUN_FOR_OWNER = (Stage.WAITING, Stage.RUNNING)
"""The stages in which the owner gets reports that the task has started."""

Stages = dict[Execution, Stage]
