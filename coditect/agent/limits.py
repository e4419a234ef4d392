"""What one agent process may take on, and whom it may answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from coditect.wire.return_addresses import ReturnAddresses


@dataclass(frozen=True, slots=True)
class AgentLimits:
    """What a process may take on."""

    slots: int
    max_suspended: int = 1_000
    drain_seconds: float = 30.0
    workspace: str | None = None
    source: str | None = None
    """The file or module that declares the agent, for handlers in processes of their own."""
    processes: bool = True
    """Whether suspects may run in such."""
    addresses: ReturnAddresses = field(default_factory=ReturnAddresses)
    """Whom it may answer."""
    tracebacks: bool = True
    """Whether results carry them."""
    reserve: int = 1
    """How many slots are kept for P0."""
