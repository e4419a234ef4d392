"""The locks, breakers, threads and handoffs of the fleet, as a client reads and steers them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self, Unpack

from coditect.aio.loop import HomeLoop
from coditect.aio.supervisor import Supervisor
from coditect.codec import encode_any
from coditect.collaboration.handoffs import HandoffRow
from coditect.collaboration.locks import MAX_RESOURCE_BYTES, GrantedLockOptions, Locking, LockRequests
from coditect.collaboration.threads import NewId, Thread, ThreadOptions, ThreadRequests
from coditect.errors import InputError, InvalidTask, LockLost, NotFound
from coditect.messaging.control_plane import ControlPlane, pages
from coditect.messaging.event_stream import EventStreams
from coditect.messaging.rpc import Requests
from coditect.model import arguments
from coditect.model.duration import Duration, seconds
from coditect.model.ids import name_in
from coditect.model.limits import Breaker, BreakerState
from coditect.model.option import read_options
from coditect.model.row import Row
from coditect.model.thread import ThreadRow
from coditect.wire.control import Verb
from coditect.wire.json import loads

if TYPE_CHECKING:
    from coditect.resilience.breakers import Breakers, GuardedCall


@dataclass(frozen=True, slots=True)
class LockRow(Row):
    """A lock request (ticket) at one resource: who holds the lock, or waits for it."""

    resource: str
    state: str
    """`held` or `waiting`; the waiting ones come in the order in which they are granted."""
    mode: str
    fence: int
    """The fencing token of the holder; 0 of one that waits."""
    agent: str
    """The agent or client that asked."""
    task: str
    """The task whose handler asked; empty for a client's."""
    begun_ms: int
    expires_ms: int
    """When the ticket ends unless it is renewed, in milliseconds since the epoch."""
    ticket: str
    reason: str = ""
    """Why its owner wants the lock, in the owner's words; may be empty."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LockGrant:
    """A lock that its holder renews and releases by requests of its own, such as over HTTP."""

    ticket: str
    """The id of the lock, by which it is renewed and released."""
    resources: list[str]
    fence: int
    """The fencing token, higher than that of every earlier holder."""
    expires_in_ms: int
    """Milliseconds until others may have the lock, unless it is renewed."""


class Locks:
    """The locks of the fleet: listed, released by force, and taken for holders without a connection of their own."""

    def __init__(self, control: ControlPlane, locking: Locking, requests: LockRequests) -> None:
        self._control = control
        self._locking = locking
        self._requests = requests

    async def list(self, resource: str | None = None, *, limit: int | None = None) -> AsyncIterator[LockRow]:
        """Yield who holds or awaits locks on all resources, or on one; by resource, and then in order of arrival."""
        async for row in pages(self._control, Verb.LOCK_LIST, "locks", {"resource": resource}, limit=limit):
            yield LockRow.read(row)

    async def acquire(
        self,
        *resources: str,
        by: str | None = None,
        **options: Unpack[GrantedLockOptions],
    ) -> LockGrant:
        """Take a lock in the name of `by` that this client does not renew; the options are those of `lock`.

        It ends after `ttl` (1m), unless any process renews or releases it: for holders without a connection of their
        own. A lock of `Client.lock` is renewed, and simpler to use.

        Raises:
            InputError: when a parameter is wrong.
            LockTaken: when others have the lock; the fact `holders` says who, and their reasons.
            ControlPlaneRequired: when no dispatcher answers.
        """
        lock = self._locking.lock(*resources, **read_options("A lock", GrantedLockOptions, options))
        holder = self._control.name if by is None else arguments.text("by", by, shortest=1, longest=MAX_RESOURCE_BYTES)
        terms, names = lock.terms(self._control.new_id()), sorted(set(resources))
        wanted = self._requests.want(names, terms, owner=holder, agent=holder)
        state = await self._requests.acquire(wanted, terms["timeout_seconds"])
        self._requests.leave(wanted)
        return LockGrant(wanted.ticket, names, state["fence"], state["expires_in_ms"])

    async def renew(self, ticket: str, *, fence: int) -> int:
        """Keep a lock of `acquire` for another full `ttl`, and return the milliseconds until it expires.

        Raises:
            LockLost: when the lock is not held under this fence any more.
            ControlPlaneRequired: when no dispatcher answers.
        """
        state = await self._control.ask(Verb.LOCK_RENEW, _held(ticket, fence))
        if state["state"] != "held":
            fix = "acquire the lock again; the resource must refuse what comes under the old fence"
            raise LockLost("The lock is not held any more", ticket=ticket, fence=fence, fix=fix)
        return int(state["expires_in_ms"])

    async def release(self, ticket: str, *, fence: int) -> bool:
        """Release a lock of `acquire`; False if it was not held under this fence any more."""
        answer = await self._control.ask(Verb.LOCK_RELEASE, _held(ticket, fence))
        return bool(answer["released"])

    async def release_all(
        self, resource: str | None = None, *, agent: str | None = None, task: str | None = None, reason: str
    ) -> int:
        """Release by force a resource's locks, or all that an agent or one of its tasks has or awaits; return how many.

        The holders get `LockLost` with the reason. They may write all the same until they hear of it: only a resource
        that checks the fence refuses that.

        Raises:
            InputError: when it is not said which locks are meant.
        """
        if (resource is None) is (agent is None) or (task is not None and agent is None):
            raise InputError("Say which locks to release", fix="name a resource, or --agent, or --agent and --task")
        body = {"resource": resource} if agent is None else {"agent": agent, "task": task}
        released, more = 0, True
        while more:
            answer = await self._control.ask(Verb.LOCK_RELEASE, body | {"reason": reason})
            released += answer["released"]
            more = answer["more"] and answer["released"] > 0
        return released


def _held(ticket: str, fence: int) -> dict[str, Any]:
    return {
        "ticket": arguments.text("ticket", ticket, shortest=1, longest=MAX_RESOURCE_BYTES),
        "fence": arguments.whole("fence", fence, 1, 2**53),
    }


NEWS = ("breaker.opened", "breaker.closed")


@dataclass(frozen=True, slots=True)
class BreakerListing:
    """A breaker of the fleet as the control plane records it, once it was first opened or reset."""

    state: BreakerState
    due_ms: int | None
    """When the next probe may be permitted, in milliseconds since the epoch; None when closed, or held open."""
    reset_ms: int
    """The probe interval in milliseconds."""

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Self:
        """Parse a breaker's row from an answer of the control plane."""
        return cls(BreakerState.read(row), row["due_ms"], row["reset_ms"])


class FleetBreakers:
    """The circuit breakers of the fleet: listed, opened and reset; `Client.breaker` guards a call by one."""

    def __init__(
        self, control: ControlPlane, event_stream: EventStreams, background: Supervisor, home: HomeLoop
    ) -> None:
        self._control = control
        self._background = background
        self._event_stream = event_stream
        self._home = home

    @cached_property
    def _breakers(self) -> Breakers:
        from coditect.resilience.breakers import Breakers  # noqa: PLC0415 - only a client with breakers pays for it

        now = asyncio.get_running_loop().time
        breakers = Breakers({}, self._control, self._background, name=self._control.name, now=now)
        self._background.start(self._follow(breakers), name="news of breakers")
        return breakers

    async def _follow(self, breakers: Breakers) -> None:
        """Ask which breakers of the fleet are open, and follow the events about breakers until the client closes."""
        async with self._event_stream.stream(*NEWS) as stream:
            await breakers.learn()
            async for event in stream:
                try:
                    breakers.heard(BreakerState.read(dict(event.data) | {"name": event.subject}))
                except (InvalidTask, TypeError):
                    continue  # an event of that name from somebody else

    def call(self, breaker: str | Breaker) -> GuardedCall:
        """Return a context manager around one call of a dependency; see `Client.breaker`.

        Raises:
            SetupError: when the client is not open in this event loop, also at the beginning of the block.
        """
        from coditect.resilience.breakers import HomeCall  # noqa: PLC0415 - only a client with breakers pays for it

        self._home.check()
        return HomeCall(self._breakers.get(breaker), self._home)

    async def list(self, *, limit: int | None = None) -> AsyncIterator[BreakerListing]:
        """Yield the fleet's breakers that ever opened or were reset, sorted by name."""
        async for row in pages(self._control, Verb.BREAKER_LIST, "breakers", {}, limit=limit):
            yield BreakerListing.read(row)

    async def get(self, name: str) -> BreakerListing:
        """Return a breaker's state in the whole fleet, and when its next probe may be permitted.

        Raises:
            NotFound: when no breaker of the name ever opened.
        """
        async for row in pages(self._control, Verb.BREAKER_LIST, "breakers", {"name": name}):
            return BreakerListing.read(row)
        raise NotFound("No breaker of this name ever opened in the fleet", breaker=name, fix="coditect breaker list")

    async def open(self, name: str, *, reason: str) -> BreakerState:
        """Open a breaker in the whole fleet until it is reset, without probe calls, and return its state."""
        body = {"name": name, "reason": reason, "by": self._control.name}
        return BreakerState.read(await self._control.ask(Verb.BREAKER_HOLD, body))

    async def reset(self, name: str, *, reason: str) -> BreakerState:
        """Close a breaker in the whole fleet, and return its state."""
        body = {"name": name, "reason": reason, "by": self._control.name}
        return BreakerState.read(await self._control.ask(Verb.BREAKER_RESET, body))


LONGEST_THREAD_BYTES = 200


class Threads:
    """The discussion threads that the control plane keeps."""

    def __init__(self, control: ControlPlane, requests: Requests) -> None:
        self._control = control
        self._port = ThreadRequests(control, requests)
        self._name = requests.name

    async def open(
        self,
        *participants: str,
        by: str | None = None,
        **options: Unpack[ThreadOptions],
    ) -> Thread:
        """Open a thread for these participants and for `by`, which is this client unless a person is named.

        A participant is the name of an agent, a capability, or the name of a person. The thread is kept for
        `retention` (7d) after its last message.

        Raises:
            InputError: when there are more than 50 participants, or a parameter is wrong.
        """
        return await self.get(self._control.new_id(), by=by).open(participants, **options)

    def get(self, thread: str, *, by: str | None = None, new_id: NewId | None = None) -> Thread:
        """Return a thread by its id, to be used in the name of `by` (a person or agent); sends no request yet.

        `new_id`, random by default, gives the ids of messages, each by a text that says what it is.
        """
        name = arguments.text("thread", thread, shortest=1, longest=LONGEST_THREAD_BYTES)
        return Thread(self._port, name, [by or self._name], new_id or self._new_id)

    async def list(
        self,
        *,
        participant: str | None = None,
        task: str | None = None,
        workflow: str | None = None,
        ticket: str | None = None,
        open_only: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[ThreadRow]:
        """Yield the threads, the earliest first: all, or those of a participant, a task, a workflow or a ticket."""
        wanted = {"participant": participant, "task": task, "workflow": workflow, "ticket": ticket, "open": open_only}
        async for row in pages(self._control, Verb.THREAD_LIST, "threads", wanted, limit=limit):
            yield ThreadRow.of(row)

    def _new_id(self, _: str) -> str:
        return self._control.new_id()


LONGEST_TEXT_BYTES = 1_000


class Handoffs:
    """The handoffs that the control plane keeps, each as long as its workflow.

    Raises:
        ControlPlaneRequired: by every method, when no dispatcher answers.
        NotFound: by every method about one handoff that is unknown, or whose workflow is not kept any more.
    """

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def list(
        self,
        *,
        task: str | None = None,
        workflow: str | None = None,
        agent: str | None = None,
        open_only: bool = False,
        limit: int | None = None,
    ) -> AsyncIterator[HandoffRow]:
        """Yield the handoffs that fit all given conditions, without their contexts; the earliest workflow's come first.

        The conditions: a task, a workflow, an agent that hands off, was asked or accepted, and whether they are open.
        """
        wanted = {"task": task, "workflow": workflow, "agent": agent, "open": open_only}
        async for row in pages(self._control, Verb.HANDOFF_LIST, "handoffs", wanted, limit=limit):
            yield HandoffRow.read(row)

    async def get(self, handoff: str) -> HandoffRow:
        """Return a handoff, with the context that the task's owner passes on."""
        named = arguments.text("handoff", handoff, shortest=1)
        return HandoffRow.read(await self._control.ask(Verb.HANDOFF_SHOW, {"handoff": named}))

    async def request(
        self,
        task: str,
        *,
        owner: str,
        to: str,
        asked: tuple[Sequence[str], str],
        reason: str = "",
        context: Any = None,
        timeout: Duration = "1m",
        ticket: str = "",
    ) -> HandoffRow:
        """Offer a task in the name of the agent that runs it, its `owner`, to the agents `asked`, one after the other.

        The call does not wait for the end. When an agent accepts, the owner's execution is canceled, and the task is
        that agent's. `asked` are the agents that `to` names, and the capability as which the task runs then, empty for
        its own: `agents_to_ask` finds them. A repeat with the same `ticket` offers nothing again.

        Raises:
            InputError: when the control plane does not keep the task, or the owner does not run it.
            Conflict: when the task is being handed off already.
            Retryable: when no agent has reported yet that it runs the task.
            TooLarge: when the context is over 64,000 bytes.
        """
        workflow, _, node = arguments.text("task", task, shortest=1, longest=LONGEST_TEXT_BYTES).partition(":")
        if not node:
            fix = "submit it with durable=True, or make it a node of a workflow"
            raise InputError("A direct task cannot be handed off: nobody keeps it", task=task, fix=fix)
        body = {
            "workflow": workflow,
            "node": node,
            "agent": arguments.text("owner", owner, shortest=1),
            "to": arguments.text("to", to, shortest=1),
            "capability": asked[1],
            "candidates": list(asked[0]),
            "reason": arguments.text("reason", reason, longest=LONGEST_TEXT_BYTES),
            "context": loads(encode_any(context)),
            "timeout_ms": max(1, round(1000 * seconds(arguments.span("timeout", timeout)))),
            "ticket": ticket or self._control.new_id(),
        }
        return HandoffRow.read(await self._control.ask(Verb.HANDOFF_REQUEST, body))

    async def accept(self, handoff: str, *, agent: str) -> HandoffRow:
        """Take an offered task over in the name of an agent that was asked; return the handoff as it is now.

        Raises:
            InputError: when the agent was not asked.
        """
        return await self._answer(Verb.HANDOFF_ACCEPT, handoff, agent)

    async def decline(self, handoff: str, *, agent: str, reason: str = "") -> HandoffRow:
        """Decline an offered task in the name of an agent that was asked; return the handoff as it is now.

        Raises:
            InputError: when the agent was not asked.
        """
        checked = arguments.text("reason", reason, longest=LONGEST_TEXT_BYTES)
        return await self._answer(Verb.HANDOFF_DECLINE, handoff, agent, reason=checked)

    async def _answer(self, verb: Verb, handoff: str, agent: str, **more: str) -> HandoffRow:
        """Answer an offer in the name of the asked agent of this id, or of the last asked one of this name."""
        asked = [offer.agent for offer in reversed((await self.get(handoff)).asked)]
        named = agent if agent in asked else next((asked_id for asked_id in asked if name_in(asked_id) == agent), agent)
        return HandoffRow.read(await self._control.ask(verb, {"handoff": handoff, "agent": named} | more))

    async def withdraw(self, handoff: str, *, by: str | None = None, reason: str = "") -> HandoffRow:
        """Withdraw an open handoff, so that the task stays with its owner; return it as it is now. Idempotent."""
        body = {
            "handoff": arguments.text("handoff", handoff, shortest=1),
            "by": by or self._control.name,
            "reason": arguments.text("reason", reason, longest=LONGEST_TEXT_BYTES),
        }
        return HandoffRow.read(await self._control.ask(Verb.HANDOFF_WITHDRAW, body))
