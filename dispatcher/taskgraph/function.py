"""The function that every job of ours in RQ names, which refuses to run in a stock RQ worker.

A dispatcher publishes a node to the agents and never calls a function. A stock worker that was started on the
dispatcher's queues imports this function, which refuses: the job fails in RQ, the ledger does not change, and the
dispatcher puts the job back and logs it.
"""

from __future__ import annotations

from typing import NoReturn

from coditect.errors import SetupError

FUNCTION = "dispatcher.taskgraph.function.publish"
"""The name of the function in every job of the dispatcher; RQ calls none, and another name is refused."""


class RunByTheDispatcher(SetupError):
    """The error of a node's job that a stock RQ worker executed, without any effect; stop that worker."""


def publish(workflow: str, node: str) -> NoReturn:
    """Refuse to run: only a dispatcher publishes nodes, and a stock RQ worker took the job by mistake.

    Raises:
        RunByTheDispatcher: always.
    """
    raise RunByTheDispatcher(
        "Only a Coditect dispatcher takes jobs from this queue",
        workflow=workflow,
        node=node,
        fix="stop the RQ worker that listens on coditect-* queues; the dispatcher puts the job back",
    )
