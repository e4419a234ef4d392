"""What can go wrong with RQ.

::

    CoditectError
    ├── Retryable
    │   └── TaskGraphUnavailable  no answer within the time; what was sent may have been done
    └── SetupError
        └── RunByTheDispatcher    a stock RQ worker took a job that only a dispatcher may take
"""

from __future__ import annotations

from coditect.errors import Retryable, SetupError


class TaskGraphUnavailable(Retryable):
    """RQ's Redis did not answer in time, or refused. Every call of the task graph may be repeated as it is."""


class RunByTheDispatcher(SetupError):
    """A stock RQ worker executed a workflow's node. It did nothing; stop that worker."""
