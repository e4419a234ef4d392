"""The limits of one agent process: how much work it may take on, and which addresses it may answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.wire.addresses.return_addresses import ReturnAddresses


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """The slots, bounds and permissions of one agent process."""

    slots: int
    max_suspended: int = 1_000
    drain_seconds: float = 30.0
    workspace: str | None = None
    source: str | None = None
    """The file or module that declares the agent, for handlers in processes of their own."""
    processes: bool = True
    """Whether suspects may run in processes of their own."""
    addresses: ReturnAddresses = field(default_factory=ReturnAddresses)
    """The return addresses that the agent may answer."""
    tracebacks: bool = True
    """Whether results carry tracebacks."""
    reserve: int = 1
    """Number of slots that are kept for P0."""
