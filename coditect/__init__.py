"""Coditect: a fleet of software agents that find each other, hand work over, and finish it.

The package exports the public names. Each name is imported at its first use, so that a short command starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coditect.agent.declaration import Agent
    from coditect.agent.handlers.context import Context, PlainContext
    from coditect.agent.handlers.dependencies import Depends
    from coditect.agent.handlers.middleware import CallNext, MiddlewareContext
    from coditect.client.client import Client
    from coditect.client.handle import Handle
    from coditect.client.options import Options
    from coditect.client.workflow_run import Run
    from coditect.collaboration.handoffs import HandoffRow
    from coditect.errors import (
        BreakerOpen,
        CoditectError,
        ResultTimeout,
        StreamRestarted,
        TaskCanceled,
        TaskExpired,
        TaskFailed,
        TaskRejected,
    )
    from coditect.model.capability import Priority
    from coditect.model.event import Event
    from coditect.model.limits.breaker import Breaker
    from coditect.model.limits.rate import Rate
    from coditect.model.result import Outcome, Status
    from coditect.model.retry import Retry, RetryAfter
    from coditect.model.strategy import Strategy, Wanted
    from coditect.operations.agent_actions import broadcast, request_agent_action
    from coditect.sync.blocking import SyncHandle, SyncRun
    from coditect.sync.client import SyncClient
    from coditect.wire.handoffs import HandoffOffer
    from coditect.workflow.builder import Workflow
    from coditect.workflow.definition import After
    from coditect.workflow.reference import From


_HOMES = {
    "After": "coditect.workflow.definition",
    "Agent": "coditect.agent.declaration",
    "Breaker": "coditect.model.limits.breaker",
    "BreakerOpen": "coditect.errors",
    "CallNext": "coditect.agent.handlers.middleware",
    "Client": "coditect.client.client",
    "CoditectError": "coditect.errors",
    "Context": "coditect.agent.handlers.context",
    "Depends": "coditect.agent.handlers.dependencies",
    "Event": "coditect.model.event",
    "From": "coditect.workflow.reference",
    "Handle": "coditect.client.handle",
    "HandoffOffer": "coditect.wire.handoffs",
    "HandoffRow": "coditect.collaboration.handoffs",
    "MiddlewareContext": "coditect.agent.handlers.middleware",
    "Options": "coditect.client.options",
    "Outcome": "coditect.model.result",
    "PlainContext": "coditect.agent.handlers.context",
    "Priority": "coditect.model.capability",
    "Rate": "coditect.model.limits.rate",
    "ResultTimeout": "coditect.errors",
    "Retry": "coditect.model.retry",
    "RetryAfter": "coditect.model.retry",
    "Run": "coditect.client.workflow_run",
    "Status": "coditect.model.result",
    "Strategy": "coditect.model.strategy",
    "StreamRestarted": "coditect.errors",
    "SyncClient": "coditect.sync.client",
    "SyncHandle": "coditect.sync.blocking",
    "SyncRun": "coditect.sync.blocking",
    "TaskCanceled": "coditect.errors",
    "TaskExpired": "coditect.errors",
    "TaskFailed": "coditect.errors",
    "TaskRejected": "coditect.errors",
    "Wanted": "coditect.model.strategy",
    "Workflow": "coditect.workflow.builder",
    "broadcast": "coditect.operations.agent_actions",
    "request_agent_action": "coditect.operations.agent_actions",
}

__all__ = [
    "After",
    "Agent",
    "Breaker",
    "BreakerOpen",
    "CallNext",
    "Client",
    "CoditectError",
    "Context",
    "Depends",
    "Event",
    "From",
    "Handle",
    "HandoffOffer",
    "HandoffRow",
    "MiddlewareContext",
    "Options",
    "Outcome",
    "PlainContext",
    "Priority",
    "Rate",
    "ResultTimeout",
    "Retry",
    "RetryAfter",
    "Run",
    "Status",
    "Strategy",
    "StreamRestarted",
    "SyncClient",
    "SyncHandle",
    "SyncRun",
    "TaskCanceled",
    "TaskExpired",
    "TaskFailed",
    "TaskRejected",
    "Wanted",
    "Workflow",
    "broadcast",
    "request_agent_action",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'coditect' has no attribute {name!r}")
    return getattr(import_module(home), name)
