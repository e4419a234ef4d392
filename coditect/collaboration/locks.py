"""Locks for agents and clients: `async with ctx.lock("repo:x") as lock`, with a fencing token in `lock.fence`.

A lock says who may write; it cannot stop who may not any more, since a process that stood still does not know how late
it is. So the resource itself must refuse a write whose fence is lower than one that it has seen.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Annotated, Any, NoReturn, Protocol, Self, Unpack

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError, Deadlock, LockLost, LockTaken, Retryable, SetupError
from coditect.messaging.control_plane import ControlPlane
from coditect.messaging.rpc import Requests
from coditect.model import arguments
from coditect.model.duration import Duration, seconds
from coditect.model.option import Option, read_options
from coditect.telemetry.metrics import (
    LOCK_CONTENTIONS,
    LOCK_LONGEST,
    LOCK_TIMEOUTS,
    LOCK_WAIT,
    LOCKS_ACTIVE,
    LOCKS_WAITING,
)
from coditect.telemetry.tracing import Span, begin_lock
from coditect.wire.control import Verb
from coditect.wire.headers import TraceContext
from coditect.wire.json import dumps, loads

log = logging.getLogger(__name__)

DEFAULT_TTL: Duration = "10s"
MOST_RESOURCES = 32
MAX_RESOURCE_BYTES = 500
RENEWALS = 3
"""The number of times that a lock is renewed within its TTL, so that one lost renewal loses no lock."""
MOST_METADATA_BYTES = 4_000
NO_METADATA: Mapping[str, Any] = {}
LEADER = "leader:"
"""The prefix of the resource of an election: the holder of its lock is the leader."""


class Mode(StrEnum):
    """The modes of a lock: an exclusive lock bars every other one, a shared lock bars only exclusive ones."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class LockOptions(TypedDict, total=False):
    """The options of every lock."""

    mode: Annotated[Mode | str, Option("`shared` allows other shared locks.", "exclusive")]
    wait: Annotated[bool, Option("Wait while others have the lock; else fail at once.", True)]
    reason: Annotated[
        str, Option("What the lock is for; others see it, and a refused caller gets it.", "", high=MAX_RESOURCE_BYTES)
    ]
    metadata: Annotated[
        Mapping[str, Any], Option("More about it, in at most 4,000 bytes of JSON, for listings and events.")
    ]


class RenewedLockOptions(LockOptions, total=False):
    """The options of a lock that its holder's process renews while a block of code runs."""

    timeout: Annotated[Duration, Option("The longest wait.")]
    ttl: Annotated[
        Duration,
        Option("How long the lock outlives a holder that is silent.", DEFAULT_TTL, low="1s", high="1h"),
    ]


class GrantedLockOptions(LockOptions, total=False):
    """The options of a lock that its holder renews and releases by requests of its own, by hand or over HTTP."""

    timeout: Annotated[Duration, Option("The longest wait.", "30s", example="2m")]
    ttl: Annotated[
        Duration, Option("How long the lock lasts unless it is renewed.", "1m", low="1s", high="1h", example="10m")
    ]


class LockTerms(TypedDict):
    """The parameters of a lock request, such as mode, longest wait and TTL, as JSON values."""

    mode: str
    wait: bool
    timeout_seconds: float | None
    """The longest wait in seconds; None for no limit."""
    ttl_seconds: float
    flow: str
    """Which of its owner's flows of execution takes the lock."""
    reason: str
    """Why the lock is wanted, for those who see it; may be empty."""
    metadata: dict[str, Any]


class LockPort(Protocol):
    """The port through which a `Lock` reaches the control plane; all arguments and results are JSON values."""

    async def acquire_lock(self, resources: list[str], **terms: Unpack[LockTerms]) -> dict[str, Any]:
        """Lock resources in one step, waiting if told to; return `ticket` (the lock's id), `fence` and `valid_until`.

        Until that time, which is monotonic, the lock surely holds.

        Raises:
            LockTaken: when the lock is not free, or not within `timeout_seconds`.
            Deadlock: when the wait would never end.
            ControlPlaneRequired: when no dispatcher answers.
        """

    async def keep_lock(self, ticket: str, *, after_seconds: float) -> dict[str, Any]:
        """Wait `after_seconds` for a message on a lock request, else renew it; return state, reason, `valid_until`."""

    async def release_lock(self, ticket: str) -> None:
        """Release a lock, or give up the wait for it; if the request for that is lost, the lock ends with its TTL."""


class Lock:
    """A lock on one or several resources, held inside of `async with`; renewed until the block ends.

    When the lock is lost inside of the block, the block is canceled, and `LockLost` is raised at its end.
    """

    def __init__(
        self,
        port: LockPort,
        resources: tuple[str, ...],
        *,
        mode: Mode | str,
        wait: bool,
        timeout_seconds: float | None,
        ttl_seconds: float,
        reason: str = "",
        metadata: Mapping[str, Any] = NO_METADATA,
    ) -> None:
        self._port = port
        self.resources = resources
        """The names of the locked resources."""
        self.mode = mode
        self.reason = reason
        """Why the lock is wanted, as `coditect lock list`, events and refused callers show it; may be empty."""
        self.metadata = metadata
        self._wait = wait
        self._timeout_seconds = timeout_seconds
        self._ttl_seconds = ttl_seconds
        self._fence = 0
        self._ticket = ""
        self._guard: asyncio.Timeout | None = None
        """The time limit of the block, which moves on with each renewal: from there on others may have the lock."""
        self._keeper: asyncio.Task[None] | None = None
        self.lost = ""
        """Why the lock was lost while it was held; empty as long as it is held."""
        self.flow = ""
        """Which of its agent's flows of execution takes the lock; empty: the asyncio task that enters it."""

    @property
    def fence(self) -> int:
        """The fencing token of the lock, higher than that of every earlier holder; give it to each side effect.

        Raises:
            SetupError: when the lock has not been acquired.
        """
        if not self._fence:
            raise SetupError("The lock is not held", fix="async with ctx.lock(...) as lock: lock.fence")
        return self._fence

    def terms(self, flow: str) -> LockTerms:
        """Return the terms of a request for this lock by one flow of execution."""
        return {
            "mode": str(self.mode),
            "wait": self._wait,
            "timeout_seconds": self._timeout_seconds,
            "ttl_seconds": self._ttl_seconds,
            "flow": flow,
            "reason": self.reason,
            "metadata": dict(self.metadata),
        }

    def __enter__(self) -> NoReturn:
        fix = "async with; or, in a plain handler, the parameter ctx: PlainContext, and in a script Client.sync()"
        raise SetupError("This lock waits on an event loop", fix=fix)

    def __exit__(self, *_: object) -> None:  # without it, `with` fails before it calls `__enter__`
        pass

    async def __aenter__(self) -> Self:
        if self._guard is not None:
            raise SetupError("A lock is entered once", fix="call lock(...) again for the next block")
        flow = self.flow or f"{id(asyncio.current_task()):x}"
        granted = await self._port.acquire_lock(list(self.resources), **self.terms(flow))
        loop = asyncio.get_running_loop()
        self._ticket, self._fence = granted["ticket"], granted["fence"]
        if granted["valid_until"] <= loop.time():  # it took too long to go on: others may have the lock by now
            self.lost = granted.get("reason") or "its time was over before its holder could go on"
            await self._port.release_lock(self._ticket)
            raise self._loss()
        self._guard = asyncio.timeout_at(granted["valid_until"])
        await self._guard.__aenter__()
        self._keeper = loop.create_task(self._keep(self._guard), name=f"keeper of {self.resources[0]}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._guard is not None
        assert self._keeper is not None
        self._keeper.cancel()
        try:
            await self._guard.__aexit__(kind, error, trace)
        except TimeoutError as over:
            raise self._loss() from over
        finally:  # a lost one, too: it may be lost to this process alone, and nothing more is to be heard of it
            await self._port.release_lock(self._ticket)
        if self.lost and error is None:
            raise self._loss()

    async def _keep(self, guard: asyncio.Timeout) -> None:
        """Renew the lock every third of its TTL until it is lost, and then cancel the block that holds it."""
        loop = asyncio.get_running_loop()
        pause = self._ttl_seconds / RENEWALS
        while True:
            try:
                state = await self._port.keep_lock(self._ticket, after_seconds=pause)
            except CoditectError as error:  # its guard ends the block, unless a later renewal comes in time
                log.info("A lock could not be renewed", extra={"resources": self.resources, "reason": str(error)})
                continue
            if state["state"] != "held":
                self.lost = str(state.get("reason") or "it was not renewed in time")
                guard.reschedule(loop.time())
                return
            guard.reschedule(state["valid_until"])

    def _loss(self) -> LockLost:
        self.lost = self.lost or "the control plane did not answer in time"
        return LockLost(
            "A lock was lost while it was held",
            resources=list(self.resources),
            fence=self._fence,
            reason=self.lost,
            fix="do the work again; the resource must have refused what came too late, by its fence",
        )


def _metadata(metadata: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the metadata of a lock as JSON values.

    Raises:
        InputError: when they are no object, or too large.
        InvalidTask: when JSON cannot express a value.
    """
    if metadata is None:
        return NO_METADATA
    encoded = dumps(dict(metadata)) if isinstance(metadata, Mapping) else b""
    if not 0 < len(encoded) <= MOST_METADATA_BYTES:
        fix = f"a JSON object of at most {MOST_METADATA_BYTES} bytes; put the large part into shared state"
        arguments.refuse("metadata", "A lock has no such metadata", metadata, fix)
    checked: dict[str, Any] = loads(encoded)
    return checked


class Locking:
    """The methods of a client or a handler's context by which it takes locks."""

    @property
    def _lock_port(self) -> LockPort:
        raise NotImplementedError

    def lock(self, *resources: str, **options: Unpack[RenewedLockOptions]) -> Lock:
        """Return a lock on one or several resources, taken in one step by `async with client.lock("repo:x") as lock`.

        Locks are granted in order of arrival, and each grant has a higher `lock.fence` than every one before. With
        `wait=False`, or after `timeout`, a lock that others have raises `LockTaken`; a wait that would never end raises
        `Deadlock`. A lock whose holder stands still or dies is gone after `ttl`; the holder gets `LockLost`. A handler
        that waits holds no slot of its agent. `reason` and `metadata` (a JSON object of at most 4,000 bytes) say what
        the lock is for: listings and events have both, and a refused caller gets the holder's reason.

        Raises:
            InputError: when a parameter is wrong; the error names the parameter.
        """
        names = tuple(
            arguments.text("resources", resource, shortest=1, longest=MAX_RESOURCE_BYTES) for resource in resources
        )
        arguments.whole("resources", len(names), 1, MOST_RESOURCES)
        chosen = read_options("A lock", RenewedLockOptions, options)
        timeout = chosen.pop("timeout")
        chosen["timeout_seconds"] = None if timeout is None else seconds(timeout)
        chosen |= {"ttl_seconds": seconds(chosen.pop("ttl")), "metadata": _metadata(chosen["metadata"])}
        return Lock(self._lock_port, names, **chosen)

    def elect(self, name: str, *, ttl: Duration = DEFAULT_TTL) -> Lock:
        """Return the election for a name: `async with client.elect("billing") as term`, which waits to be the leader.

        The leader holds the lock of the resource `leader:NAME`; `term.fence` is the number of its term, which everybody
        can read (`Client.locks`). A leader that stands still or dies is followed by the next after `ttl`.
        """
        return self.lock(LEADER + arguments.text("name", name, shortest=1, longest=MAX_RESOURCE_BYTES // 2), ttl=ttl)


LONGEST_ASK_SECONDS = 30.0
RELEASE_SECONDS = 5.0
"""How long a closing process waits for the answers to its releases; a release of a running one outlasts the TTL by it.
"""
MAX_RELEASED_TICKETS = 50
LOST_GRANT_SECONDS = 5.0
"""The longest time after which a request that waits is renewed, since the message that it was granted may be lost."""
NEVER_SECONDS = 1e9
SHORTEST_WAIT_SECONDS = 0.001
"""A wait that has less than this left is over: a clock may not tell a shorter span from none."""


@dataclass(slots=True, eq=False)
class WantedLock:
    """The request for one lock, under an id (ticket) that stays the same when the request is sent again."""

    ticket: str
    """The id under which the lock is wanted now; after a loss it is wanted under a new one."""
    body: dict[str, Any]
    ttl_seconds: float
    begun: float
    """The event loop's time at which the lock was wanted first."""
    span: Span | None
    """The span of a traced lock."""
    sent: float = 0.0
    """When the last answered request that keeps the ticket was sent: from then on its time runs, or from later."""
    waits_since: float | None = None
    """The event loop's time since which the request waits; None if it does not."""
    held: bool = False
    lost: str = ""
    """Why the granted lock was lost while its task waited for a slot; empty if it was not."""


class LockRequests:
    """The lock requests of one process, each with an id (ticket); messages about it have that as correlation id."""

    def __init__(self, control: ControlPlane, requests: Requests, background: Supervisor) -> None:
        self._control = control
        self._requests = requests
        self._background = background
        self._wanted: dict[str, WantedLock] = {}
        """The requests for the locks that this process holds or waits for, by ticket."""
        self._releases: dict[asyncio.Task[None], WantedLock] = {}
        """The releases that are on their way; whatever is asked for next names them, in case it is faster."""
        metrics = requests.metrics
        self._waited = metrics.histogram(LOCK_WAIT)
        self._contentions = metrics.counter(LOCK_CONTENTIONS)
        self._timeouts = metrics.counter(LOCK_TIMEOUTS)
        metrics.observe(LOCKS_ACTIVE, lambda: sum(wanted.held for wanted in self._wanted.values()))
        metrics.observe(LOCKS_WAITING, lambda: len(self._waits()))
        metrics.observe(LOCK_LONGEST, lambda: max(self._waits(), default=0.0))

    def _waits(self) -> list[float]:
        """Return for how many seconds each request that waits has waited so far."""
        return [_now() - wanted.waits_since for wanted in self._wanted.values() if wanted.waits_since is not None]

    def want(
        self,
        resources: list[str],
        terms: LockTerms,
        *,
        owner: str,
        task: str = "",
        agent: str = "",
        trace: TraceContext | None = None,
    ) -> WantedLock:
        """Create the request for a lock, which `ask` sends; then the caller must call `wait_for` or `release_lock`.

        `agent` is the holder's name, by default that of this process. The span of a traced lock is a child of `trace`,
        or of the current span, and ends with the lock.
        """
        ticket = self._requests.new_token()
        body = {
            "ticket": ticket,
            "resources": resources,
            "mode": terms["mode"],
            "wait": terms["wait"],
            "ttl_ms": round(1000 * terms["ttl_seconds"]),
            "agent": agent or self._requests.name,
            "task": task,
            "owner": f"{owner}/{terms['flow']}",
            "reply_to": self._requests.reply_to,
            "reason": terms["reason"],
            "metadata": terms["metadata"],
        }
        body["released"] = [*self._in_its_way(body)][-MAX_RELEASED_TICKETS:]
        span = begin_lock(self._requests.tracing, resources, terms["mode"], trace)
        shown = span if span is not None and span.sampled else None
        return WantedLock(ticket, body, terms["ttl_seconds"], _now(), shown)

    def _in_its_way(self, body: dict[str, Any]) -> Iterator[str]:
        """Yield the released tickets that a request would wait for if the control plane still believed them held."""
        for released in self._releases.values():
            same_flow = released.body["owner"] == body["owner"]
            if same_flow or not set(released.body["resources"]).isdisjoint(body["resources"]):
                yield released.ticket

    async def acquire_lock(self, resources: list[str], **terms: Unpack[LockTerms]) -> dict[str, Any]:
        """Lock resources for this process, as `LockPort.acquire_lock` says."""
        wanted = self.want(resources, terms, owner=self._requests.name)
        return await self.acquire(wanted, terms["timeout_seconds"])

    async def acquire(self, wanted: WantedLock, timeout_seconds: float | None) -> dict[str, Any]:
        """Ask for a lock, wait until it is granted, and return its state."""
        state = await self.ask(wanted, timeout_seconds=timeout_seconds)
        return await self.wait_for(wanted, state, timeout_seconds)

    async def ask(self, wanted: WantedLock, *, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Ask for a lock, and return its state: held, waiting, or gone if it was lost before the answer came.

        Raises:
            LockTaken: when the lock is not free, and the request does not wait.
            Deadlock: when the wait would never end; names the cycle.
            ControlPlaneRequired: when no dispatcher answers.
        """
        self._requests.expect(wanted.ticket)  # the grant may come before the answer
        self._wanted[wanted.ticket] = wanted
        sent = _now()
        try:
            state = await self._control.ask(Verb.LOCK_ACQUIRE, wanted.body, timeout=_ask_seconds(timeout_seconds))
            if state["state"] == "gone":
                return state
            if state["state"] == "held":
                self._granted(wanted, state)
            else:
                self._contentions.value += 1
            if state["state"] == "taken":
                raise _taken(wanted, state, waited_seconds=0.0)
            if state["state"] == "deadlock":
                raise _deadlock(wanted, state["cycle"])
        except (LockTaken, Deadlock) as error:
            self._end_span(wanted, error)
            self._forget(wanted)
            raise
        except BaseException as error:  # the request may have been carried out all the same
            self._end_span(wanted, error)
            await self.release_lock(wanted.ticket)
            raise
        wanted.sent = sent
        if state["state"] == "waiting" and wanted.waits_since is None:
            wanted.waits_since = _now()
        return _sure(wanted, state)

    async def wait_for(
        self, wanted: WantedLock, state: dict[str, Any], timeout_seconds: float | None
    ) -> dict[str, Any]:
        """Wait until a lock is granted, and return its state; the next renewal makes up for a lost grant message.

        Raises:
            LockTaken: when the lock was not granted within `timeout_seconds`; its ticket is released.
        """
        begun = _now()
        end = begun + (NEVER_SECONDS if timeout_seconds is None else timeout_seconds)
        try:
            while state["state"] != "held":
                if state["state"] == "gone":  # the control plane could not hear this process in time: back to the end
                    self._want_anew(wanted)
                    state = await self.ask(wanted, timeout_seconds=end - _now())
                    continue
                after = min(wanted.ttl_seconds / RENEWALS, LOST_GRANT_SECONDS, end - _now())
                if after < SHORTEST_WAIT_SECONDS:
                    self._timeouts.value += 1
                    raise _taken(wanted, state, waited_seconds=_now() - begun)
                holders = state.get("holders", [])  # only the answer to the request names them
                state = {"holders": holders} | await self._next_state(wanted, state, after)
        except BaseException as error:
            self._end_span(wanted, error)
            await self.release_lock(wanted.ticket)
            raise
        self._granted(wanted, state)
        return state

    @asynccontextmanager
    async def kept(self, wanted: WantedLock) -> AsyncIterator[None]:
        """Renew a granted lock while its task waits for a slot inside of the block; then `latest` tells its state."""
        keeper = asyncio.create_task(self._keep(wanted), name="keeper of a granted lock")
        try:
            yield
        finally:
            keeper.cancel()

    async def _keep(self, wanted: WantedLock) -> None:
        state = {"state": "held"}
        while not wanted.lost:
            state = await self._next_state(wanted, state, wanted.ttl_seconds / RENEWALS)
            if state["state"] == "gone":
                wanted.lost = str(state.get("reason") or "it was not renewed in time")

    def latest(self, wanted: WantedLock, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a granted lock with the time until which it surely holds by its last renewal."""
        if wanted.lost:
            return state | {"reason": wanted.lost, "valid_until": -math.inf}
        return _sure(wanted, state)

    def _granted(self, wanted: WantedLock, state: dict[str, Any]) -> None:
        """Record that a lock is held from now on, and how long the request for it waited; idempotent."""
        if wanted.held:
            return
        self._waited.record(0.0 if wanted.waits_since is None else _now() - wanted.waits_since)
        wanted.held, wanted.waits_since = True, None
        if wanted.span is not None:
            waited_ms = round(1000 * (_now() - wanted.begun))
            wanted.span.add({"coditect.lock.fence": state["fence"], "coditect.lock.waited_ms": waited_ms})

    def _end_span(self, wanted: WantedLock, error: BaseException | None = None) -> None:
        """End a lock's span, without an error's facts: they name other holders and their reasons."""
        if wanted.span is not None:
            sentence = error.sentence if isinstance(error, CoditectError) else ""
            wanted.span.end("" if error is None else type(error).__name__, sentence)
            wanted.span = None

    def _want_anew(self, wanted: WantedLock) -> None:
        """Give a request for a lock a new id: a late message about the old id must not count for it."""
        self._forget(wanted)
        wanted.ticket = self._requests.new_token()
        wanted.body = wanted.body | {"ticket": wanted.ticket}

    async def _next_state(self, wanted: WantedLock, known: dict[str, Any], after: float) -> dict[str, Any]:
        try:
            return await self.keep_lock(wanted.ticket, after_seconds=after)
        except Retryable:
            return known

    async def keep_lock(self, ticket: str, *, after_seconds: float) -> dict[str, Any]:
        """Wait `after_seconds` for a message on a lock request, else renew it; return `state`, `reason`, `valid_until`.

        A request that is released meanwhile is `gone`.

        Raises:
            ControlPlaneRequired: when no dispatcher answers within the TTL.
        """
        pushed = self._requests.expect(ticket)
        await asyncio.wait({pushed}, timeout=after_seconds)
        state, sent, must_renew = {"state": "waiting"}, _now(), not pushed.done()
        if must_renew:
            state = await self._control.ask(Verb.LOCK_RENEW, {"ticket": ticket}, timeout=LONGEST_ASK_SECONDS)
        wanted = self._wanted.get(ticket)
        if wanted is None:
            return {"state": "gone", "reason": "it was released", "ticket": ticket, "valid_until": 0.0}
        if must_renew:
            wanted.sent = sent
        if pushed.done() and not pushed.cancelled() and state["state"] != "gone":  # it may have come meanwhile
            state = loads(pushed.result().body)
        return _sure(wanted, state)

    async def release_lock(self, ticket: str) -> None:
        """Release a lock, or give up the wait for it, in the background: the caller need not wait for the answer.

        The request is repeated until it is answered, but not longer than the lock could last without renewals. If the
        process ends before that, the lock ends with its TTL.
        """
        self._requests.forget(ticket)
        wanted = self._wanted.pop(ticket, None)
        if wanted is None:  # it was never asked for, or is released already
            return
        self._end_span(wanted)
        work = self._background.start(self._release(wanted), name="release a lock")
        self._releases[work] = wanted
        work.add_done_callback(self._releases.pop)

    def leave(self, wanted: WantedLock) -> None:
        """Stop to track a granted lock, which others renew and release from now on."""
        self._forget(wanted)
        self._end_span(wanted)

    async def close(self) -> None:
        """Wait until the control plane has answered the requests to release locks, for 5 s at most."""
        if self._releases:
            await asyncio.wait([*self._releases], timeout=RELEASE_SECONDS)

    async def _release(self, wanted: WantedLock) -> None:
        ticket, timeout = wanted.ticket, RELEASE_SECONDS + wanted.ttl_seconds
        try:
            await self._control.ask(Verb.LOCK_RELEASE, {"ticket": ticket}, timeout=timeout)
        except CoditectError as error:
            log.info("A lock is left to its TTL", extra={"ticket": ticket, "reason": str(error)})

    def _forget(self, wanted: WantedLock) -> None:
        self._requests.forget(wanted.ticket)
        self._wanted.pop(wanted.ticket, None)


def _sure(wanted: WantedLock, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state of a lock request, its id, and the event loop's time until which it surely stays valid."""
    return state | {"ticket": wanted.ticket, "valid_until": wanted.sent + wanted.ttl_seconds}


def _taken(wanted: WantedLock, state: dict[str, Any], *, waited_seconds: float) -> LockTaken:
    """Build the error that reports that others have the lock, and who, as far as the last answer says it."""
    return LockTaken(
        "Others have the lock",
        resources=wanted.body["resources"],
        waited_seconds=round(waited_seconds, 3),
        holders=state.get("holders", []),
        fix="wait longer, or look who has it: coditect lock list",
    )


def _deadlock(wanted: WantedLock, cycle: list[dict[str, str]]) -> Deadlock:
    links = [f"{link['agent']} ({link['owner']}) waits for {link['waits_for']}" for link in cycle]
    return Deadlock(
        "This wait would never end: each waits for what the next one has",
        resources=[link["waits_for"] for link in cycle],
        cycle=links,
        fix="lock all of them in one step, or everywhere in the same order",
    )


def _ask_seconds(timeout_seconds: float | None) -> float:
    return LONGEST_ASK_SECONDS if timeout_seconds is None else max(1.0, min(LONGEST_ASK_SECONDS, timeout_seconds))


def _now() -> float:
    return asyncio.get_running_loop().time()


Run = Callable[[Coroutine[Any, Any, None]], None]
"""Runs a coroutine on the event loop of another thread, and waits for its end."""


class BlockingLock:
    """A lock held inside of `with`; the thread of the event loop renews it until the block ends.

    A thread cannot be canceled: when the lock is lost inside of the block, `lost` says why from then on, and `LockLost`
    is raised at the block's end. A long block looks at `lost` before each of its steps.
    """

    def __init__(self, lock: Lock, run: Run, *, closing: Run) -> None:
        """Wrap an asynchronous lock; `run` runs the coroutine that acquires it, `closing` the one that releases it."""
        self._lock, self._run, self._closing = lock, run, closing
        self._over = asyncio.Event()
        self._holder: asyncio.Task[None] | None = None

    @property
    def resources(self) -> tuple[str, ...]:
        """The names of the locked resources."""
        return self._lock.resources

    @property
    def fence(self) -> int:
        """The fencing token of the lock, higher than that of every earlier holder."""
        return self._lock.fence

    @property
    def lost(self) -> str:
        """The reason why the lock was lost inside of the block; empty as long as it is held."""
        return self._lock.lost

    def __enter__(self) -> Self:
        self._lock.flow = f"thread {threading.get_ident():x}"  # the tasks that hold its locks wait for one thread
        self._run(self._begin())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._closing(self._end())
        except LockLost:
            if error is None:
                raise

    async def _begin(self) -> None:
        """Acquire the lock in an asyncio task of its own, which holds it until the block ends."""
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._holder = asyncio.create_task(self._hold(held), name=f"holder of {self.resources[0]}")
        try:
            await asyncio.wait({self._holder, held}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._holder.cancel()
            raise
        if not held.done():
            await self._holder

    async def _hold(self, held: asyncio.Future[None]) -> None:
        async with self._lock:
            held.set_result(None)
            await self._over.wait()

    async def _end(self) -> None:
        assert self._holder is not None
        self._over.set()
        await self._holder
