"""The requests of one process about its locks: acquire, renew, wait for the grant, release.

Each request for a lock has an id of its own, the ticket. Once it is released, lost or refused it is never asked for
again: whoever still wants the lock asks under a new ticket.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coditect.aio.supervisor import Supervisor
from coditect.collaboration.asks import Asks
from coditect.collaboration.lock_metrics import LockMetrics
from coditect.collaboration.locks import RENEWALS, LockTerms
from coditect.errors import CoditectError, Deadlock, LockTaken, Retryable
from coditect.messaging.rpc import Requests
from coditect.wire.control import Verb
from coditect.wire.json import loads

log = logging.getLogger(__name__)

LONGEST_ASK_SECONDS = 30.0
RELEASE_SECONDS = 5.0
"""How long a closing process waits for the answers to its releases; a release of a running one outlasts the TTL by it.
"""
MOST_NAMED = 50
LOST_GRANT_SECONDS = 5.0
"""The longest time after which a request that waits is renewed, since the message that it was granted may be lost."""
NEVER_SECONDS = 1e9
SHORTEST_WAIT_SECONDS = 0.001
"""A wait that has less than this left is over: a clock may not tell a shorter span from none."""


@dataclass(slots=True)
class WantedLock:
    """The request for one lock, under an id (ticket) that stays the same when the request is sent again."""

    ticket: str
    """The id under which the lock is wanted now; after a loss it is wanted under a new one."""
    body: dict[str, Any]
    ttl_seconds: float


@dataclass(frozen=True, slots=True)
class _Release:
    """A lock that this process has released, as long as the control plane may not know it."""

    wanted: dict[str, Any]
    """The body of the request for the lock."""
    work: asyncio.Task[None]


class LockRequests:
    """The lock requests of one process, each with an id (ticket); messages about it have that as correlation id."""

    def __init__(self, control: Asks, requests: Requests, background: Supervisor) -> None:
        self._control = control
        self._requests = requests
        self._background = background
        self._metrics = LockMetrics(requests.metrics)
        self._bodies: dict[str, dict[str, Any]] = {}
        """The bodies of the requests for the locks that this process holds or waits for, by ticket."""
        self._releases: dict[str, _Release] = {}
        """The releases that are on their way, by ticket; whatever is asked for next names them, in case it is faster.
        """
        self._sent: dict[str, float] = {}
        """When the last answered request that keeps a ticket was sent: from then on its time runs, or from later."""

    def want(self, resources: list[str], terms: LockTerms, *, owner: str, task: str = "") -> WantedLock:
        """Create the request for a lock, which `ask` sends; then the caller must call `wait_for` or `release_lock`."""
        ticket = self._requests.new_token()
        body = {
            "ticket": ticket,
            "resources": resources,
            "mode": terms["mode"],
            "wait": terms["wait"],
            "ttl_ms": round(1000 * terms["ttl_seconds"]),
            "agent": self._requests.name,
            "task": task,
            "owner": f"{owner}/{terms['flow']}",
            "reply_to": self._requests.reply_to,
        }
        body["released"] = [*self._in_its_way(body)][-MOST_NAMED:]
        return WantedLock(ticket, body, terms["ttl_seconds"])

    def _in_its_way(self, body: dict[str, Any]) -> Iterator[str]:
        """Yield the released tickets that a request would wait for if the control plane still believed them held."""
        for ticket, release in self._releases.items():
            same_flow = release.wanted["owner"] == body["owner"]
            if same_flow or not set(release.wanted["resources"]).isdisjoint(body["resources"]):
                yield ticket

    async def ask(self, wanted: WantedLock, *, timeout_seconds: float | None = None) -> dict[str, Any]:
        """Ask for a lock, and return its state: held, waiting, or gone if it was lost before the answer came.

        Raises:
            LockTaken: when the lock is not free, and the request does not wait.
            Deadlock: when the wait would never end; names the cycle.
            ControlPlaneRequired: when no dispatcher answers.
        """
        self._requests.expect(wanted.ticket)  # the grant may come before the answer
        self._bodies[wanted.ticket] = wanted.body
        sent = _now()
        try:
            state = await self._control.ask(Verb.LOCK_ACQUIRE, wanted.body, timeout=_ask_seconds(timeout_seconds))
            if state["state"] == "gone":
                return state
            self._metrics.answered(wanted.ticket, state["state"])
            if state["state"] == "taken":
                raise _taken(wanted, waited_seconds=0.0)
            if state["state"] == "deadlock":
                raise _deadlock(wanted, state["cycle"])
        except (LockTaken, Deadlock):
            self._forget(wanted.ticket)
            raise
        except BaseException:  # the request may have been carried out all the same
            await self.release_lock(wanted.ticket)
            raise
        self._sent[wanted.ticket] = sent
        return self._sure(wanted.ticket, state, wanted.ttl_seconds)

    async def wait_for(
        self, wanted: WantedLock, state: dict[str, Any], timeout_seconds: float | None
    ) -> dict[str, Any]:
        """Wait until a lock is granted, and return its state; the next renewal makes up for a lost grant message.

        Raises:
            LockTaken: when the lock was not granted within `timeout_seconds`; its ticket is released.
        """
        begun, waited = _now(), state["state"] != "held"
        end = begun + (NEVER_SECONDS if timeout_seconds is None else timeout_seconds)
        try:
            while state["state"] != "held":
                if state["state"] == "gone":  # the control plane could not hear this process in time: back to the end
                    self._want_anew(wanted)
                    state = await self.ask(wanted, timeout_seconds=end - _now())
                    continue
                after = min(wanted.ttl_seconds / RENEWALS, LOST_GRANT_SECONDS, end - _now())
                if after < SHORTEST_WAIT_SECONDS:
                    self._metrics.timed_out()
                    raise _taken(wanted, waited_seconds=_now() - begun)
                state = await self._next_state(wanted, after)
        except BaseException:
            await self.release_lock(wanted.ticket)
            raise
        if waited:
            self._metrics.granted(wanted.ticket)
        return state

    def _want_anew(self, wanted: WantedLock) -> None:
        """Give a request for a lock a new id: a late message about the old id must not count for it."""
        ticket = self._requests.new_token()
        self._metrics.again(ticket, wanted.ticket)
        self._forget(wanted.ticket)
        wanted.ticket, wanted.body = ticket, wanted.body | {"ticket": ticket}

    async def _next_state(self, wanted: WantedLock, after: float) -> dict[str, Any]:
        try:
            return await self.keep_lock(wanted.ticket, after_seconds=after, ttl_seconds=wanted.ttl_seconds)
        except Retryable:
            return {"state": "waiting"}

    async def keep_lock(self, ticket: str, *, after_seconds: float, ttl_seconds: float) -> dict[str, Any]:
        """Wait `after_seconds` for a message on a lock request, else renew it; return `state`, `reason`, `valid_until`.

        A request that is released meanwhile is `gone`.

        Raises:
            ControlPlaneRequired: when no dispatcher answers within the TTL.
        """
        pushed = self._requests.expect(ticket)
        await asyncio.wait({pushed}, timeout=after_seconds)
        state = {"state": "waiting"}
        if not pushed.done():
            sent = _now()
            state = await self._control.ask(Verb.LOCK_RENEW, {"ticket": ticket}, timeout=LONGEST_ASK_SECONDS)
            if ticket in self._sent:
                self._sent[ticket] = sent
        if ticket not in self._sent:
            return {"state": "gone", "reason": "it was released", "ticket": ticket, "valid_until": 0.0}
        if pushed.done() and not pushed.cancelled() and state["state"] != "gone":  # it may have come meanwhile
            state = loads(pushed.result().body)
        return self._sure(ticket, state, ttl_seconds)

    async def release_lock(self, ticket: str) -> None:
        """Release a lock, or give up the wait for it, in the background: the caller need not wait for the answer.

        The request is repeated until it is answered, but not longer than the lock could last without renewals. If the
        process ends before that, the lock ends with its TTL.
        """
        body = self._bodies.get(ticket)
        self._forget(ticket)
        self._metrics.ended(ticket)
        if body is None:  # it was never asked for, or is released already
            return
        work = self._background.start(self._release(ticket, body["ttl_ms"] / 1000), name="release a lock")
        self._releases[ticket] = _Release(body, work)
        work.add_done_callback(lambda _: self._releases.pop(ticket))

    async def close(self) -> None:
        """Wait until the control plane has answered the requests to release locks, for 5 s at most."""
        if self._releases:
            await asyncio.wait([release.work for release in self._releases.values()], timeout=RELEASE_SECONDS)

    async def _release(self, ticket: str, ttl_seconds: float) -> None:
        try:
            await self._control.ask(Verb.LOCK_RELEASE, {"ticket": ticket}, timeout=RELEASE_SECONDS + ttl_seconds)
        except CoditectError as error:
            log.info("A lock is left to its TTL", extra={"ticket": ticket, "reason": str(error)})

    def _forget(self, ticket: str) -> None:
        self._requests.forget(ticket)
        self._sent.pop(ticket, None)
        self._bodies.pop(ticket, None)

    def _sure(self, ticket: str, state: dict[str, Any], ttl_seconds: float) -> dict[str, Any]:
        """Return the state of a lock request, its id, and the event loop's time until which it surely stays valid."""
        return state | {"ticket": ticket, "valid_until": self._sent[ticket] + ttl_seconds}


def _taken(wanted: WantedLock, *, waited_seconds: float) -> LockTaken:
    """Build the error that reports that others have the lock."""
    return LockTaken(
        "Others have the lock",
        resources=wanted.body["resources"],
        waited_seconds=round(waited_seconds, 3),
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
