"""Coditect: a fleet of software agents that find each other, hand work over, and finish it.

The package exports the public names. Each name is imported at its first use, so that a short command starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coditect.agent.context import Context, PlainContext
    from coditect.agent.declaration import Agent
    from coditect.agent.signature import CallNext, Depends, MiddlewareContext
    from coditect.client.client import Client
    from coditect.client.direct import Answer
    from coditect.client.handle import Handle
    from coditect.client.options import Options
    from coditect.client.workflow_run import WorkflowRun
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
    from coditect.model.capability import Priority, Strategy, Wanted
    from coditect.model.lesson import Lesson
    from coditect.model.limits import Breaker, Rate
    from coditect.model.message import Event
    from coditect.model.result import Outcome, Status
    from coditect.model.retry import Retry, RetryAfter
    from coditect.operations.agent_actions import broadcast, request_agent_action
    from coditect.sync import SyncClient, SyncHandle, SyncWorkflowRun
    from coditect.wire.workflow_tasks import HandoffOffer
    from coditect.workflow.builder import Workflow
    from coditect.workflow.definition import After, From


_HOMES = {
    "After": "coditect.workflow.definition",
    "Agent": "coditect.agent.declaration",
    "Answer": "coditect.client.direct",
    "Breaker": "coditect.model.limits",
    "BreakerOpen": "coditect.errors",
    "CallNext": "coditect.agent.signature",
    "Client": "coditect.client.client",
    "CoditectError": "coditect.errors",
    "Context": "coditect.agent.context",
    "Depends": "coditect.agent.signature",
    "Event": "coditect.model.message",
    "From": "coditect.workflow.definition",
    "Handle": "coditect.client.handle",
    "HandoffOffer": "coditect.wire.workflow_tasks",
    "HandoffRow": "coditect.collaboration.handoffs",
    "Lesson": "coditect.model.lesson",
    "MiddlewareContext": "coditect.agent.signature",
    "Options": "coditect.client.options",
    "Outcome": "coditect.model.result",
    "PlainContext": "coditect.agent.context",
    "Priority": "coditect.model.capability",
    "Rate": "coditect.model.limits",
    "ResultTimeout": "coditect.errors",
    "Retry": "coditect.model.retry",
    "RetryAfter": "coditect.model.retry",
    "WorkflowRun": "coditect.client.workflow_run",
    "Status": "coditect.model.result",
    "Strategy": "coditect.model.capability",
    "StreamRestarted": "coditect.errors",
    "SyncClient": "coditect.sync",
    "SyncHandle": "coditect.sync",
    "SyncWorkflowRun": "coditect.sync",
    "TaskCanceled": "coditect.errors",
    "TaskExpired": "coditect.errors",
    "TaskFailed": "coditect.errors",
    "TaskRejected": "coditect.errors",
    "Wanted": "coditect.model.capability",
    "Workflow": "coditect.workflow.builder",
    "broadcast": "coditect.operations.agent_actions",
    "request_agent_action": "coditect.operations.agent_actions",
}

__all__ = [
    "After",
    "Agent",
    "Answer",
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
    "Lesson",
    "MiddlewareContext",
    "Options",
    "Outcome",
    "PlainContext",
    "Priority",
    "Rate",
    "ResultTimeout",
    "Retry",
    "RetryAfter",
    "Status",
    "Strategy",
    "StreamRestarted",
    "SyncClient",
    "SyncHandle",
    "SyncWorkflowRun",
    "TaskCanceled",
    "TaskExpired",
    "TaskFailed",
    "TaskRejected",
    "Wanted",
    "Workflow",
    "WorkflowRun",
    "broadcast",
    "request_agent_action",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'coditect' has no attribute {name!r}")
    return getattr(import_module(home), name)
