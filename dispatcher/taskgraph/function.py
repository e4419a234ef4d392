"""The one function that our jobs name, for the RQ worker that should not have taken one.

A dispatcher publishes a node to the agents and never calls a function. So a stock worker that was started on our
queues imports this one, which refuses: the job fails in RQ, the ledger does not change, and the dispatcher puts the
job back and says so.
"""

from __future__ import annotations

from typing import NoReturn

from dispatcher.taskgraph.errors import RunByTheDispatcher

FUNCTION = "dispatcher.taskgraph.function.publish"
"""The whitelist: a job with another function is refused, and no job's function is ever called."""


def publish(workflow: str, node: str) -> NoReturn:
    """Refuses. Raises: RunByTheDispatcher."""
    raise RunByTheDispatcher(
        "Only a Coditect dispatcher takes jobs from this queue",
        workflow=workflow,
        node=node,
        fix="stop the RQ worker that listens on coditect-* queues; the dispatcher puts the job back",
    )
