"""The circuit breakers of one process: pybreaker's state machine, adapted to asyncio, and the requests of the fleet's.

pybreaker holds a lock while it calls, counts a cancellation as a failure, and lets any number of calls through when it
is half-open. So pybreaker never makes a call here: a call is made outside of it, and what the call came to is recorded
in it afterwards. Exactly one probe is made at a time, and at most one in each interval. A call that began before the
breaker changed does not count any more.

::

    closed ──failures in a row, or their rate──► open ──interval over, one permit──► half-open
      ▲                                           ▲  ▲                                 │  │ │
      │                                           │  └──────probe canceled─────────────┘  │ │
      │                                           └─────────probe failed──────────────────┘ │
      └────────probe succeeded──────────────────────────────────────────────────────────────┘

With the scope `fleet` the trip, and the permit of each probe, are kept by the control plane: see `Breakers`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import islice
from math import inf
from typing import Any, NoReturn, Self

from coditect.aio.loop import HomeLoop
from coditect.aio.supervisor import Supervisor, happened
from coditect.errors import BreakerOpen, CoditectError
from coditect.messaging.control_plane import ControlPlane
from coditect.model.duration import seconds
from coditect.model.limits import Breaker, BreakerScope, BreakerState, CallVerdict, breaker_of
from coditect.wire.control import Verb

log = logging.getLogger(__name__)

BUCKETS = 10
"""The number of parts of a window; parts leave it as a whole, so a failure counts for 0.9 to 1.0 times its length."""
LEAST_SECONDS = 0.001
"""The shortest wait: a clock may not tell a shorter one from none, and a loop over the rest of a wait would spin."""
BREAKER_OPEN_FIX = (
    "wait until it closes by itself, see why it opened: `coditect breaker get NAME`, or close it: `... reset NAME`"
)
SHOWN_BREAKERS_LIMIT = 100
"""The number of breakers that the metric of breakers shows: a handler may make up names as it runs."""
BREAKER_ANSWER_SECONDS = 2.0
"""How long an answer of the control plane is awaited; without one a process probes by itself."""


class _Recorded(Exception):
    """The exception by which the library pybreaker is told of a failed call, in place of the call's own error."""


def _fail() -> NoReturn:
    raise _Recorded


def _succeed() -> None:
    """Do nothing: a call of this function tells the library pybreaker of a successful call."""


class _Window:
    """The counts of successes and failures within a window of the last seconds, kept in ten parts of equal length."""

    __slots__ = ("_parts", "_width", "part", "until")

    def __init__(self, span_seconds: float) -> None:
        self._width = span_seconds / BUCKETS
        self._parts: deque[tuple[int, list[int]]] = deque()
        self.part = [0, 0]
        """The successes and the failures of the present part, which ends at `until`."""
        self.until = -inf

    def roll(self, now: float) -> None:
        """Begin the part of the window that holds the instant `now`, and drop the parts older than the window."""
        number = int(now / self._width)
        self.until = (number + 1) * self._width
        while self._parts and self._parts[0][0] <= number - BUCKETS:
            self._parts.popleft()
        self.part = [0, 0]
        self._parts.append((number, self.part))

    def counts(self) -> tuple[int, int]:
        """Return the number of calls in the window, and of those that failed."""
        failures = sum(part[1] for _, part in self._parts)
        return failures + sum(part[0] for _, part in self._parts), failures

    def clear(self) -> None:
        self._parts.clear()
        self.until = -inf


class GuardedCall:
    """A context manager around a call of a dependency: the breaker may refuse the call, else records how it ended."""

    __slots__ = ("_breaker", "_since", "_turn", "permit")

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self.permit: int | None = None
        """The permit's number if the call is a probe, 0 for a probe without the control plane; None for no probe."""

    async def __aenter__(self) -> Self:
        breaker = self._breaker
        if not breaker.is_closed:
            self.permit = await breaker.take_permit()
        self._turn = breaker.turn
        self._since = breaker.now()
        return self

    async def __aexit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.end(error)

    def end(self, error: BaseException | None) -> None:
        """Record how the call ended: with the exception `error`, or without one (None)."""
        breaker = self._breaker
        now = breaker.now()
        if error is None and self.permit is None and now - self._since <= breaker.slow_seconds:
            if self._turn == breaker.turn:
                breaker.succeeded(now)
            return
        self.record(breaker.declared.judge(error, now - self._since))

    def record(self, verdict: CallVerdict) -> None:
        """Record the end of the call as the caller judges it: as a success, a failure, or neither."""
        self._breaker.record(verdict, self._breaker.now(), turn=self._turn, permit=self.permit)


class HomeCall(GuardedCall):
    """A guarded call that begins only in the event loop in which its client is open."""

    __slots__ = ("_home",)

    def __init__(self, breaker: CircuitBreaker, home: HomeLoop) -> None:
        super().__init__(breaker)
        self._home = home

    async def __aenter__(self) -> Self:
        self._home.check()
        return await super().__aenter__()


class CircuitBreaker:
    """The breaker of one dependency in this process; asyncio tasks of one event loop share it."""

    def __init__(
        self,
        declared: Breaker,
        *,
        now: Callable[[], float],
        keeper: Breakers | None = None,
        changed: Callable[[CircuitBreaker], None] = lambda _: None,
    ) -> None:
        """Create a closed breaker; `changed` is called after each change of its state, or of its next probe."""
        import pybreaker  # noqa: PLC0415 - only an agent with a breaker needs it

        self.declared = declared
        self.now = now
        self.turn = 0
        """The number of changes between closed and open so far; calls of an earlier turn do not count."""
        self.is_closed = True
        self.slow_seconds = inf if declared.slow is None else seconds(declared.slow)
        """The time above which a call counts as a failure."""
        self.reason = ""
        """Why the breaker is open."""
        self._machine = pybreaker.CircuitBreaker(fail_max=declared.failures, name=declared.name)
        self._counted = (_Recorded, pybreaker.CircuitBreakerError)
        """What the library raises once it has counted a failed call."""
        self._window = _Window(seconds(declared.window))
        self._keeper = keeper
        self._changed = changed
        self._due = -inf
        """The time, as by `now`, from which on a probe may be made."""
        self._probing = False
        self._version = -1
        self._fleet_knows = False
        """Whether the control plane knows that the breaker is open; if not, this process probes by itself."""
        self._reserved: int | None = None
        self._news = asyncio.Event()

    def call(self) -> GuardedCall:
        """Return a context manager around one call of the dependency; its entry raises BreakerOpen for a refused call.

        Nothing is held during the call. An exception of `Breaker.on` counts as a failure, as does a slow call; the
        cancellation of a call that was not slow does not count at all.
        """
        return GuardedCall(self)

    @property
    def wait_seconds(self) -> float:
        """The seconds until a probe (a trial call) may be made; infinite while an operator holds the breaker open."""
        return max(0.0, self._due - self.now())

    @property
    def refuses(self) -> bool:
        """True when this process would refuse a call right now, without asking the control plane."""
        return not self.is_closed and self._reserved is None and (self._probing or self.wait_seconds > 0)

    # -- calls ------------------------------------------------------------------------------------------

    def succeeded(self, now: float) -> None:
        """Record a successful call that began after the breaker's last change between closed and open."""
        window = self._window
        if now >= window.until:
            window.roll(now)
        window.part[0] += 1
        if self._machine.fail_counter:
            self._machine.call(_succeed)

    def record(self, verdict: CallVerdict, now: float, *, turn: int, permit: int | None) -> None:
        """Record the end of a call (with a permit: of a probe), unless the breaker opened or closed since it began."""
        if turn != self.turn:
            return
        if permit is not None:
            self._decided(verdict, permit)
        elif verdict is CallVerdict.SUCCESS:
            self.succeeded(now)
        elif verdict is CallVerdict.FAILURE:
            self._failed(now)

    def _failed(self, now: float) -> None:
        window, declared = self._window, self.declared
        if now >= window.until:
            window.roll(now)
        window.part[1] += 1
        with suppress(*self._counted):
            self._machine.call(_fail)
        calls, failures = window.counts()
        if self._machine.current_state == "open":
            self._tripped(f"{declared.failures} failures in a row")
        elif calls >= declared.calls and failures >= declared.rate * calls:
            self._machine.open()
            self._tripped(f"{failures} of the last {calls} calls failed")

    def _tripped(self, reason: str) -> None:
        self._fleet_knows = False
        self._opened(reason, self.declared.reset_seconds)
        log.warning("A breaker opened", extra={"breaker": self.declared.name, "reason": reason})
        self._tell_trip()

    def _tell_trip(self) -> None:
        if self._keeper is not None:
            reset_ms = max(1, round(1000 * self.declared.reset_seconds))
            self._keeper.report(self, Verb.BREAKER_TRIP, reset_ms=reset_ms, reason=self.reason)

    # -- probes -----------------------------------------------------------------------------------------

    async def take_permit(self) -> int | None:
        """Take the permit by which this call is the probe; return its number, or None if the breaker closed meanwhile.

        Raises:
            BreakerOpen: when the interval is not over, or another call is the probe, in this process or in the fleet.
        """
        if self._reserved is not None:
            permit, self._reserved = self._reserved, None
            return permit
        if self.refuses:
            raise self.refusal()
        self._probing, turn = True, self.turn
        try:
            permit = await self._ask()
        except BaseException:
            self._probing = False
            raise
        if self.turn != turn:
            self._probing = False
            if self.is_closed:
                return None
            raise self.refusal()
        self._machine.half_open()
        self._due = self.now() + self.declared.reset_seconds  # of the next one, whatever comes of this one
        return permit

    async def _ask(self) -> int:
        """Return the number of the control plane's permit for a probe; 0 when this process decides by itself.

        Also 0 when the answer has closed the breaker.

        Raises:
            BreakerOpen: when the control plane grants no permit.
        """
        if self._keeper is None or not self._fleet_knows:
            return 0
        state = await self._keeper.ask(Verb.BREAKER_PERMIT, self.declared.name)
        if state is None:
            return 0
        self.adopt(state)
        if not self.is_closed and not state.permit:
            raise self.refusal()
        return state.permit

    async def reserve(self) -> bool:
        """Take the permit for a probe (a trial call), and keep it for the next call; return False if calls are refused.

        A permit that no call has used by the next interval lapses.
        """
        if self._reserved is not None:
            self._reserved = None
            self._decided(CallVerdict.NEUTRAL, 0)
        try:
            permit = await self.take_permit()
        except BreakerOpen:
            return False
        self._reserved = permit
        return True

    def _decided(self, verdict: CallVerdict, permit: int) -> None:
        """Close the breaker after a successful probe; keep it open after one that failed, was canceled or not made."""
        self._probing = False
        if verdict is CallVerdict.NEUTRAL:
            self._machine.open()
            return
        succeeded = verdict is CallVerdict.SUCCESS
        with suppress(*self._counted):
            self._machine.call(_succeed if succeeded else _fail)
        if succeeded:
            self._closed()
            log.info("A breaker closed: its probe succeeded", extra={"breaker": self.declared.name})
        else:
            self._due = self.now() + self.declared.reset_seconds
            self._tell_change()
        if permit and self._keeper is not None:
            reason = "a probe succeeded" if succeeded else "a probe failed"
            self._keeper.report(self, Verb.BREAKER_DECIDE, permit=permit, succeeded=succeeded, reason=reason)
        elif not succeeded and not self._fleet_knows:
            self._tell_trip()

    # -- news -------------------------------------------------------------------------------------------

    def adopt(self, state: BreakerState) -> None:
        """Adopt the breaker's state in the fleet, unless a newer state is known already."""
        if state.version < self._version:
            return
        self._version = state.version
        if state.open:
            self._fleet_knows = True
            wait = inf if state.retry_ms is None else state.retry_ms / 1000
            if self.is_closed:
                self._machine.open()
                self._opened(state.reason, wait)
                facts = {"breaker": state.name, "reason": state.reason, "by": state.by}
                log.warning("A breaker opened, as elsewhere in the fleet", extra=facts)
            else:
                self._due = self.now() + wait
                self._tell_change()
        elif not self.is_closed:
            self._machine.close()
            self._closed()

    def _opened(self, reason: str, wait_seconds: float) -> None:
        self.is_closed, self.reason = False, reason
        self.turn += 1
        self._due = self.now() + wait_seconds
        self._tell_change()

    def _closed(self) -> None:
        self.is_closed, self.reason = True, ""
        self._probing, self._reserved, self._fleet_knows = False, None, False
        self.turn += 1
        self._window.clear()
        self._tell_change()

    def _tell_change(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
        self._changed(self)

    async def next_change(self, within_seconds: float) -> None:
        """Wait until the breaker opens, closes or moves its next probe, or `within_seconds` (at least 1 ms) pass."""
        await happened(self._news, None if within_seconds == inf else max(LEAST_SECONDS, within_seconds))

    def refusal(self) -> BreakerOpen:
        """Return the error of a call that the open breaker refuses."""
        wait = self.wait_seconds
        return BreakerOpen(
            "The breaker of this dependency is open",
            breaker=self.declared.name,
            retry_after_seconds=None if wait == inf else round(wait, 3),
            reason=self.reason,
            fix=BREAKER_OPEN_FIX,
        )


class Breakers:
    """The breakers of one process; those of the scope `fleet` follow what the control plane says."""

    def __init__(
        self,
        declared: Mapping[str, Breaker],
        control: ControlPlane,
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

    def get(self, breaker: str | Breaker) -> CircuitBreaker:
        """Return the process's breaker of a name, made at its first use.

        Raises:
            InputError: when the name is none.
        """
        found = self._breakers.get(breaker.name if isinstance(breaker, Breaker) else breaker)
        if found is not None:
            return found
        declared = breaker if isinstance(breaker, Breaker) else self._declared.get(breaker) or breaker_of(breaker)
        shared = declared.scope is BreakerScope.FLEET
        made = CircuitBreaker(declared, now=self._now, keeper=self if shared else None, changed=self._changed)
        self._breakers[declared.name] = made
        if shared and (known := self._news.pop(declared.name, None)) is not None:
            made.adopt(known)
        return made

    def states(self) -> dict[tuple[str, ...], float]:
        """Return the values of a metric: for each breaker and state (closed, open), 1 if the breaker is in it, else 0.

        These are the breakers declared or used, at most `SHOWN_BREAKERS_LIMIT` of them.
        """
        shown = islice(dict.fromkeys((*self._declared, *self._breakers)), SHOWN_BREAKERS_LIMIT)
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
                page = await self._control.ask(
                    Verb.BREAKER_LIST, {"open": True, "after": after}, timeout=BREAKER_ANSWER_SECONDS
                )
                for document in page["breakers"]:
                    self.heard(BreakerState.read(document))
                if (after := page["next"]) is None:
                    return
        except CoditectError as error:
            log.info("The open breakers of the fleet are not known yet", extra={"reason": str(error)})

    # -- the keeper of each breaker ---------------------------------------------------------------------

    def report(self, breaker: CircuitBreaker, verb: Verb, **body: Any) -> None:
        """Send a request about a breaker to the control plane in the background; apply the answer to the breaker."""

        async def adopt() -> None:
            if (state := await self.ask(verb, breaker.declared.name, **body)) is not None:
                breaker.adopt(state)

        self._background.start(adopt(), name=f"breaker {breaker.declared.name}")

    async def ask(self, verb: Verb, breaker: str, **body: Any) -> BreakerState | None:
        """Send a request about a breaker, and return the breaker's state in the fleet; None without an answer."""
        try:
            answer = await self._control.ask(
                verb, {"name": breaker, "by": self._name} | body, timeout=BREAKER_ANSWER_SECONDS
            )
            return BreakerState.read(answer)
        except CoditectError as error:
            facts = {"breaker": breaker, "request": verb.value, "reason": str(error)}
            log.info("The control plane does not keep a breaker; the process decides alone", extra=facts)
            return None
