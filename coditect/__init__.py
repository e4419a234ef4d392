"""Coditect: a fleet of software agents that find each other, hand work over, and finish it.

The public names; each is imported when it is first used, so that a short command starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coditect.agent.context import Context
    from coditect.agent.declaration import Agent
    from coditect.client import Client
    from coditect.errors import (
        CoditectError,
        ResultTimeout,
        TaskCanceled,
        TaskExpired,
        TaskFailed,
        TaskRejected,
    )
    from coditect.handle import Handle
    from coditect.model.capability import Priority
    from coditect.model.event import Event
    from coditect.model.result import Outcome, Status
    from coditect.model.retry import Retry
    from coditect.model.strategy import Strategy, Wanted
    from coditect.model.workflow.definition import After
    from coditect.model.workflow.flow import Workflow
    from coditect.model.workflow.template import From
    from coditect.options import Options
    from coditect.run import Run
    from coditect.sync import SyncHandle, SyncRun
    from coditect.sync_client import SyncClient


_HOMES = {
    "After": "coditect.model.workflow.definition",
    "Agent": "coditect.agent.declaration",
    "Client": "coditect.client",
    "CoditectError": "coditect.errors",
    "Context": "coditect.agent.context",
    "Event": "coditect.model.event",
    "From": "coditect.model.workflow.template",
    "Handle": "coditect.handle",
    "Options": "coditect.options",
    "Outcome": "coditect.model.result",
    "Priority": "coditect.model.capability",
    "ResultTimeout": "coditect.errors",
    "Retry": "coditect.model.retry",
    "Run": "coditect.run",
    "Status": "coditect.model.result",
    "Strategy": "coditect.model.strategy",
    "SyncClient": "coditect.sync_client",
    "SyncHandle": "coditect.sync",
    "SyncRun": "coditect.sync",
    "TaskCanceled": "coditect.errors",
    "TaskExpired": "coditect.errors",
    "TaskFailed": "coditect.errors",
    "TaskRejected": "coditect.errors",
    "Wanted": "coditect.model.strategy",
    "Workflow": "coditect.model.workflow.flow",
}

__all__ = [
    "After",
    "Agent",
    "Client",
    "CoditectError",
    "Context",
    "Event",
    "From",
    "Handle",
    "Options",
    "Outcome",
    "Priority",
    "ResultTimeout",
    "Retry",
    "Run",
    "Status",
    "Strategy",
    "SyncClient",
    "SyncHandle",
    "SyncRun",
    "TaskCanceled",
    "TaskExpired",
    "TaskFailed",
    "TaskRejected",
    "Wanted",
    "Workflow",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'coditect' has no attribute {name!r}")
    return getattr(import_module(home), name)
