"""The breakers of one process, by name, and its requests about them to the control plane."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError
from coditect.model.duration import Duration
from coditect.model.limits.breaker import Breaker, BreakerScope, BreakerState, breaker_of
from coditect.wire.control import Verb

if TYPE_CHECKING:
    from coditect.resilience.breaker import CircuitBreaker, NewsOf

log = logging.getLogger(__name__)

MOST_SHOWN = 100
"""The number of breakers that the metric of breakers shows: a handler may make up names as it runs."""
ASK_SECONDS = 2.0
"""How long an answer of the control plane is awaited; without one a process probes by itself."""


class AsksControl(Protocol):
    """The interface by which breakers ask the control plane; a request is repeated until its answer or its timeout."""

    async def ask(self, verb: Verb, body: dict[str, Any], *, timeout: Duration = ...) -> dict[str, Any]:
        """Send a request, and return the control plane's answer."""


class Breakers:
    """The breakers of one process; those of the scope `fleet` follow what the control plane says."""

    def __init__(
        self,
        declared: Mapping[str, Breaker],
        control: AsksControl,
        background: Supervisor,
        *,
        name: str,
        now: Callable[[], float],
        changed: Callable[[CircuitBreaker], None] = lambda _: None,
    ) -> None:
        """Prepare the breakers of the process `name`; one that is used by a name not in `declared` has the defaults."""
        self._declared = declared
        self._control = control
        self._background = background
        self._name = name
        self._now = now
        self._changed = changed
        self._breakers: dict[str, CircuitBreaker] = {}
        self._news: dict[str, BreakerState] = {}
        """The open breakers of the fleet that this process has not used yet."""

    def get(self, given: str | Breaker) -> CircuitBreaker:
        """Return the process's breaker of a name, made at its first use.

        Raises:
            InputError: when the name is none.
        """
        found = self._breakers.get(given.name if isinstance(given, Breaker) else given)
        if found is not None:
            return found
        from coditect.resilience.breaker import CircuitBreaker  # noqa: PLC0415 - pybreaker: with the first breaker

        declared = given if isinstance(given, Breaker) else self._declared.get(given) or breaker_of(given)
        shared = declared.scope is BreakerScope.FLEET
        made = CircuitBreaker(declared, now=self._now, keeper=self if shared else None, changed=self._changed)
        self._breakers[declared.name] = made
        if shared and (known := self._news.pop(declared.name, None)) is not None:
            made.adopt(known)
        return made

    def states(self) -> dict[tuple[str, ...], float]:
        """Return the values of a metric: for each breaker and state (closed, open), 1 if the breaker is in it, else 0.

        These are the breakers declared or used, at most `MOST_SHOWN` of them.
        """
        shown = islice(dict.fromkeys((*self._declared, *self._breakers)), MOST_SHOWN)
        closed = {name: name not in self._breakers or self._breakers[name].is_closed for name in shown}
        return {
            (name, state): float(is_closed == (state == "closed"))
            for name, is_closed in closed.items()
            for state in ("closed", "open")
        }

    def heard(self, state: BreakerState) -> None:
        """Apply the control plane's state of a shared breaker; keep an open one that is unknown here for later."""
        breaker = self._breakers.get(state.name)
        if breaker is None and state.name in self._declared:
            breaker = self.get(state.name)
        if breaker is not None:
            if breaker.declared.scope is BreakerScope.FLEET:
                breaker.adopt(state)
        elif state.open:
            self._news[state.name] = state
        else:
            self._news.pop(state.name, None)

    async def learn(self) -> None:
        """Ask the control plane which breakers of the fleet are open; without an answer, keep what is known so far."""
        after = None
        try:
            while True:
                page = await self._control.ask(Verb.BREAKER_LIST, {"open": True, "after": after}, timeout=ASK_SECONDS)
                for one in page["breakers"]:
                    self.heard(BreakerState.read(one))
                if (after := page["next"]) is None:
                    return
        except CoditectError as error:
            log.info("The open breakers of the fleet are not known yet", extra={"reason": str(error)})

    # -- the keeper of each breaker ---------------------------------------------------------------------

    async def trip(self, declared: Breaker, reason: str) -> BreakerState | None:
        """Report that a breaker opened in this process; return its state in the fleet, None without an answer."""
        reset_ms = max(1, round(1000 * declared.reset_seconds))
        return await self._ask(Verb.BREAKER_TRIP, declared, reset_ms=reset_ms, reason=reason)

    async def permit(self, declared: Breaker) -> BreakerState | None:
        """Ask to make a breaker's next probe (a trial call); return its state, with a permit if granted, or None."""
        return await self._ask(Verb.BREAKER_PERMIT, declared)

    async def decide(self, declared: Breaker, permit: int, *, succeeded: bool) -> BreakerState | None:
        """Tell the control plane whether a probe succeeded; return the breaker's state then, None without an answer."""
        reason = "a probe succeeded" if succeeded else "a probe failed"
        return await self._ask(Verb.BREAKER_DECIDE, declared, permit=permit, succeeded=succeeded, reason=reason)

    def background(self, breaker: CircuitBreaker, news: NewsOf) -> None:
        """Send a request about a breaker to the control plane in the background; apply the answer to the breaker."""
        self._background.start(_adopted(breaker, news), name=f"breaker {breaker.declared.name}")

    async def _ask(self, verb: Verb, declared: Breaker, **body: Any) -> BreakerState | None:
        try:
            answer = await self._control.ask(
                verb, {"name": declared.name, "by": self._name} | body, timeout=ASK_SECONDS
            )
            return BreakerState.read(answer)
        except CoditectError as error:
            facts = {"breaker": declared.name, "request": verb.value, "reason": str(error)}
            log.info("The control plane does not keep a breaker; the process decides alone", extra=facts)
            return None


async def _adopted(breaker: CircuitBreaker, news: NewsOf) -> None:
    state = await news()
    if state is not None:
        breaker.adopt(state)
