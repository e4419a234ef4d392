"""The function that every node's job in RQ names, which refuses to run in a stock RQ worker.

A dispatcher publishes a node to the agents and never calls a function. A stock worker that was started on the
dispatcher's queues imports this function, which refuses: the job fails in RQ, the ledger does not change, and the
dispatcher puts the job back and logs it.
"""

from __future__ import annotations

from typing import NoReturn

from coditect.errors import SetupError

FUNCTION = "dispatcher.taskgraph.function.publish"
"""The function name of every node's RQ job, never called by a dispatcher; a job with another name is failed."""


class RunByTheDispatcher(SetupError):
    """The error of a stock RQ worker that took a node's job; nothing was executed, and the worker must be stopped."""


def publish(workflow: str, node: str) -> NoReturn:
    """Raise an error, because a stock RQ worker took a node's job, which only a dispatcher may publish.

    Raises:
        RunByTheDispatcher: always.
    """
    raise RunByTheDispatcher(
        "Only a Coditect dispatcher takes jobs from this queue",
        workflow=workflow,
        node=node,
        fix="stop the RQ worker that listens on coditect-* queues; the dispatcher puts the job back",
    )
