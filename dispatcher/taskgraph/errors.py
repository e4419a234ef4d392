"""The errors of the task graph in RQ, ordered by what the caller can do.

::

    CoditectError
    ├── Retryable
    │   └── TaskGraphUnavailable  no answer in time; the call may have been carried out
    └── SetupError
        └── RunByTheDispatcher    a stock RQ worker took a job that only a dispatcher may take
"""

from __future__ import annotations

from coditect.errors import Retryable, SetupError


class TaskGraphUnavailable(Retryable):
    """The error of RQ's Redis without an answer in time, or with a refusal; every call may be repeated as it is."""


class RunByTheDispatcher(SetupError):
    """The error of a node's job that a stock RQ worker executed, without any effect; stop that worker."""
