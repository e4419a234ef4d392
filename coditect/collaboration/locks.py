"""Locks for agents and clients: `async with ctx.lock("repo:x") as lock`, with a fencing token in `lock.fence`.

A lock says who may write; it cannot stop who may not any more, since a process that stood still does not know how late
it is. So the resource itself must refuse a write whose fence is lower than one that it has seen.
"""

from __future__ import annotations

import asyncio
import logging
from enum import StrEnum
from types import TracebackType
from typing import Any, NoReturn, Protocol, Self, TypedDict, Unpack

from coditect.errors import CoditectError, InputError, LockLost, SetupError
from coditect.model import arguments
from coditect.model.duration import Duration, seconds

log = logging.getLogger(__name__)

DEFAULT_TTL: Duration = "10s"
SHORTEST_TTL_SECONDS = 1.0
LONGEST_TTL_SECONDS = 3_600.0
MOST_RESOURCES = 32
LONGEST_NAME_BYTES = 500
RENEWALS = 3
"""The number of times that a lock is renewed within its TTL, so that one lost renewal loses no lock."""
LEADER = "leader:"
"""The prefix of the resource of an election: the holder of its lock is the leader."""


class Mode(StrEnum):
    """The modes of a lock: an exclusive lock bars every other one, a shared lock bars only exclusive ones."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class LockTerms(TypedDict):
    """The parameters of a lock request, such as mode, longest wait and TTL, as JSON values."""

    mode: str
    wait: bool
    timeout_seconds: float | None
    """The longest wait in seconds; None for no limit."""
    ttl_seconds: float
    flow: str
    """Which of its owner's flows of execution takes the lock."""


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

    async def keep_lock(self, ticket: str, *, after_seconds: float, ttl_seconds: float) -> dict[str, Any]:
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
    ) -> None:
        self._port = port
        self.resources = resources
        """The names of the locked resources."""
        self.mode = mode
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

    def __enter__(self) -> NoReturn:
        fix = "async with; or, in a plain handler, the parameter ctx: PlainContext, and in a script Client.sync()"
        raise SetupError("This lock waits on an event loop", fix=fix)

    def __exit__(self, *_: object) -> None:  # without it, `with` fails before it calls `__enter__`
        pass

    async def __aenter__(self) -> Self:
        if self._guard is not None:
            raise SetupError("A lock is entered once", fix="call lock(...) again for the next block")
        granted = await self._port.acquire_lock(
            list(self.resources),
            mode=str(self.mode),
            wait=self._wait,
            timeout_seconds=self._timeout_seconds,
            ttl_seconds=self._ttl_seconds,
            flow=self.flow or f"{id(asyncio.current_task()):x}",
        )
        loop = asyncio.get_running_loop()
        self._ticket, self._fence = granted["ticket"], granted["fence"]
        if granted["valid_until"] <= loop.time():  # it took too long to go on: others may have the lock by now
            self.lost = "its time was over before its holder could go on"
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
                told = await self._port.keep_lock(self._ticket, after_seconds=pause, ttl_seconds=self._ttl_seconds)
            except CoditectError as error:  # its guard ends the block, unless a later renewal comes in time
                log.info("A lock could not be renewed", extra={"resources": self.resources, "reason": str(error)})
                continue
            if told["state"] != "held":
                self.lost = str(told.get("reason") or "it was not renewed in time")
                guard.reschedule(loop.time())
                return
            guard.reschedule(told["valid_until"])

    def _loss(self) -> LockLost:
        self.lost = self.lost or "the control plane did not answer in time"
        return LockLost(
            "A lock was lost while it was held",
            resources=list(self.resources),
            fence=self._fence,
            reason=self.lost,
            fix="do the work again; the resource must have refused what came too late, by its fence",
        )


class Locking:
    """The methods of a client or a handler's context by which it takes locks."""

    @property
    def _lock_port(self) -> LockPort:
        raise NotImplementedError

    def lock(
        self,
        *resources: str,
        mode: Mode | str = Mode.EXCLUSIVE,
        wait: bool = True,
        timeout: Duration | None = None,
        ttl: Duration = DEFAULT_TTL,
    ) -> Lock:
        """Return a lock on one or several resources, taken in one step by `async with client.lock("repo:x") as lock`.

        Locks are granted in order of arrival, and each grant has a higher `lock.fence` than every one before. With
        `wait=False`, or after `timeout`, a lock that others have raises `LockTaken`; a wait that would never end raises
        `Deadlock`. A lock whose holder stands still or dies is gone after `ttl`; the holder gets `LockLost`. A handler
        that waits holds no slot of its agent.

        Raises:
            InputError: when a parameter is wrong; the error names the parameter.
        """
        names = tuple(arguments.text("resources", one, shortest=1, longest=LONGEST_NAME_BYTES) for one in resources)
        arguments.whole("resources", len(names), 1, MOST_RESOURCES)
        ttl_seconds = seconds(arguments.span("ttl", ttl))
        if not SHORTEST_TTL_SECONDS <= ttl_seconds <= LONGEST_TTL_SECONDS:
            raise InputError("A lock has no such ttl", parameter="ttl", given=ttl, fix="between 1s and 1h")
        return Lock(
            self._lock_port,
            names,
            mode=arguments.choice("mode", mode, Mode),
            wait=arguments.yes_or_no("wait", wait),
            timeout_seconds=None if timeout is None else seconds(arguments.span("timeout", timeout)),
            ttl_seconds=ttl_seconds,
        )

    def elect(self, name: str, *, ttl: Duration = DEFAULT_TTL) -> Lock:
        """Return the election for a name: `async with client.elect("billing") as term`, which waits to be the leader.

        The leader holds the lock of the resource `leader:NAME`; `term.fence` is the number of its term, which everybody
        can read (`Client.locks`). A leader that stands still or dies is followed by the next after `ttl`.
        """
        return self.lock(LEADER + arguments.text("name", name, shortest=1, longest=LONGEST_NAME_BYTES // 2), ttl=ttl)
