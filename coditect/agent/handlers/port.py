"""The port through which the context of a handler reaches the runtime, in the agent or from a worker process."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

from coditect.collaboration.blocking_locks import BlockingLock
from coditect.collaboration.locks import Lock, LockPort
from coditect.collaboration.state import StatePort
from coditect.collaboration.threads import ThreadPort
from coditect.model.capability import Priority
from coditect.model.result import Outcome
from coditect.resilience.retry_budget import RetryPort

T = TypeVar("T")


class BreakerCall(Protocol):
    """A call of a dependency that a breaker has let through."""

    @property
    def permit(self) -> int | None:
        """The permit's number if the call is a probe, 0 for a probe without the control plane; None for no probe."""


class Services(LockPort, StatePort, ThreadPort, RetryPort, Protocol):
    """The port through which a `Context` reaches the runtime: requests, locks, state, threads, retries and events.

    A handler in a worker process calls every method by its name; `processes.rpc` lists the possible arguments.
    """

    async def request(
        self, capability: str, body: bytes, *, ordinal: int, timeout_seconds: float, priority: Priority
    ) -> Outcome:
        """Submit a child task and return its outcome; the parent task holds no slot while it waits."""

    async def without_slot(self, wait: Coroutine[Any, Any, T]) -> T:
        """Await something; the task holds no slot meanwhile, except in a worker process."""

    async def hand_off(self, to: str, *, reason: str, context: Any, timeout_seconds: float) -> dict[str, Any]:
        """Offer the task to others and return the handoff that failed; after an acceptance the execution ends."""

    async def received_handoff(self) -> dict[str, Any]:
        """Return as JSON the handoff that brought the task to this agent; `handoff`, its id, is None without one."""

    async def send_part(self, body: bytes) -> None:
        """Send the next part of a streamed result, once the requester's credit allows it."""

    async def end_parts(self, *, complete: bool) -> int:
        """Wait until the broker has all parts, and return their number; with `complete`, first send an end marker.

        Nothing is awaited or sent when no part was sent and the result is not complete.
        """

    def breaker(self, name: str) -> AbstractAsyncContextManager[BreakerCall]:
        """Return a context manager around one call of a dependency, which the dependency's breaker guards."""

    def hold(self, lock: Lock) -> BlockingLock:
        """Return a blocking form of a lock, which a plain handler holds inside of `with`."""

    def progress(self, share: float, note: str) -> None:
        """Publish the progress of the task; call on the event loop only."""

    def report(self, share: float, note: str) -> None:
        """Publish the progress of the task; may be called from any thread."""

    def emit(self, type_: str, *, subject: str = "", **data: Any) -> None:
        """Publish an event to its subscribers, at most once."""

    @property
    def asked_to_end(self) -> bool:
        """Tell whether the attempt was canceled, or its time is over."""

    @property
    def lifespan(self) -> Any:
        """The value of the agent's lifespan; None without one."""

    def run(self, work: Coroutine[Any, Any, T], *, closing: bool = False) -> T:
        """Run a coroutine, such as a call of another service, to its end for a plain handler, whose thread waits.

        With `closing` the work is done even if the handler is to end.

        Raises:
            TaskCanceled: when the handler is to end.
        """
