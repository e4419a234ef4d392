"""The part of a client that guards calls by circuit breakers, and lists, opens and closes the fleet's breakers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from coditect.aio.supervisor import Supervisor
from coditect.client.control_plane import ControlPlane, pages
from coditect.errors import InvalidTask
from coditect.messaging.event_stream import EventStreams
from coditect.model.limits.breaker import Breaker, BreakerState
from coditect.wire.control import Verb

if TYPE_CHECKING:
    from coditect.resilience.breaker import GuardedCall
    from coditect.resilience.breakers import Breakers

NEWS = ("breaker.opened", "breaker.closed")


@dataclass(frozen=True, slots=True)
class BreakerListing:
    """A breaker of the fleet as the control plane records it, once it was first opened or reset."""

    state: BreakerState
    due_ms: int | None
    """When the next probe may be permitted, in milliseconds since the epoch; None when closed, or held open."""
    reset_ms: int
    """The probe interval in milliseconds."""


class ClientBreakers:
    """The methods of `Client` for circuit breakers: use, list, open and close them."""

    name: str
    _control: ControlPlane
    _background: Supervisor
    _event_stream: EventStreams

    @cached_property
    def _breakers(self) -> Breakers:
        from coditect.resilience.breakers import Breakers  # noqa: PLC0415 - only a client with breakers pays for it

        now = asyncio.get_running_loop().time
        made = Breakers({}, self._control, self._background, name=self.name, now=now)
        self._background.start(self._follow(made), name="news of breakers")
        return made

    async def _follow(self, breakers: Breakers) -> None:
        """Ask which breakers of the fleet are open, and follow the events about breakers until the client closes."""
        async with self._event_stream.stream(*NEWS) as stream:
            await breakers.learn()
            async for event in stream:
                try:
                    breakers.heard(BreakerState.read(dict(event.data) | {"name": event.subject}))
                except (InvalidTask, TypeError):
                    continue  # an event of that name from somebody else

    def breaker(self, given: str | Breaker) -> GuardedCall:
        """Return a context manager around one call of a dependency: `async with client.breaker("github"): ...`.

        Nothing is held during the call. A `Breaker` says when the breaker opens; it is taken at the client's first use
        of the name, and a name alone has the defaults.

        Raises:
            InputError: when the name is none.
            BreakerOpen: at the beginning of the block, when the dependency has failed too often.
        """
        return self._breakers.get(given).call()

    async def breakers(self, name: str | None = None) -> AsyncIterator[BreakerListing]:
        """Yield the fleet's breakers that ever opened or were reset, sorted by name, or only the one named `name`."""
        async for row in pages(self._control, Verb.BREAKER_LIST, "breakers", {"name": name}):
            yield BreakerListing(BreakerState.read(row), row["due_ms"], row["reset_ms"])

    async def open_breaker(self, name: str, *, reason: str) -> BreakerState:
        """Open a breaker in the whole fleet until `reset_breaker`, without probe calls, and return its state."""
        body = {"name": name, "reason": reason, "by": self.name}
        return BreakerState.read(await self._control.ask(Verb.BREAKER_HOLD, body))

    async def reset_breaker(self, name: str, *, reason: str) -> BreakerState:
        """Close a breaker in the whole fleet, and return its state."""
        body = {"name": name, "reason": reason, "by": self.name}
        return BreakerState.read(await self._control.ask(Verb.BREAKER_RESET, body))
