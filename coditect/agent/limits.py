"""The limits of one agent process: how much work it may take on, and which addresses it may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from coditect.agent.processes.pool import Workers
from coditect.model.result import Failure
from coditect.model.task import Task
from coditect.wire.addresses.return_addresses import ReturnAddresses


class TaskApprovals(Protocol):
    """The port through which the runtime asks whether a task needs an approval."""

    def concern(self, task: Task) -> bool:
        """Tell whether an approval rule may match this task's capability, or tasks are not approved by default.

        A workflow task then needs a grant before it runs.
        """

    def refusal(self, task: Task) -> Failure | None:
        """Return the failure of a direct task that may not run without an approval; None for any other task."""


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """The slots, bounds and permissions of one agent process."""

    slots: int
    max_suspended: int = 1_000
    drain_seconds: float = 30.0
    workspace: str | None = None
    source: str | None = None
    """The file or module that declares the agent, for handlers in processes of their own."""
    workers: Callable[..., Workers] | None = Workers
    """The class of the worker processes; None lets suspects run as any other task."""
    addresses: ReturnAddresses = field(default_factory=ReturnAddresses)
    """The return addresses that the agent may answer."""
    tracebacks: bool = True
    """Whether results carry tracebacks."""
    reserve: int = 1
    """Number of slots that are kept for P0."""
    approvals: TaskApprovals | None = None
    """The approval policy in this process; None without one."""
