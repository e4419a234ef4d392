"""The port through which locks, shared state and discussion threads reach the control plane."""

from __future__ import annotations

from typing import Any, Protocol

from coditect.blobs import Blobs
from coditect.model.duration import Duration
from coditect.wire.control import Verb


class Asks(Protocol):
    """The port through which requests go to the control plane, each repeated until an answer comes or time is over."""

    blobs: Blobs
    name: str
    """The name of the agent or client that asks."""

    async def ask(self, verb: Verb, body: dict[str, Any], *, timeout: Duration = ...) -> dict[str, Any]:
        """Send a request, and return the control plane's answer."""
