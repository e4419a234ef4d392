"""The callbacks of commands to a shard worker, which ack, answer or requeue the message that brought the command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from coditect.errors import CoditectError
from dispatcher.store.errors import StoreUnavailable

Value = TypeVar("Value")

REBUILD_RETRY_SECONDS = 0.2
"""The pause in seconds before a refused rebuild is given to the shard worker again."""


class Settle(Protocol):
    """The callbacks of a command to a shard worker: `done` after commit or refusal, `undone` if it was not applied."""

    def done(self, answer: Any) -> None:
        """Handle the answer to a command that was committed, or the CoditectError by which it was refused for good."""

    def undone(self) -> None:
        """Handle that a command was not applied, such as by returning its message to the queue; it may come again."""


class Nothing:
    """The callbacks that do nothing, for commands of the shard worker itself, whose answer no caller awaits."""

    def done(self, answer: Any) -> None:
        """Ignore the answer to the command, because no caller waits for an answer."""

    def undone(self) -> None:
        """Ignore that the command was not applied; the shard's next worker makes a new one if needed."""


class CommandAnswer(Generic[Value]):
    """The callbacks that pass a command's answer to a waiting caller: `await answer.future`.

    The future raises the refusal of the command, or StoreUnavailable (retryable) when the shard went to another
    dispatcher.
    """

    def __init__(self) -> None:
        self.future: asyncio.Future[Value] = asyncio.get_running_loop().create_future()

    def done(self, answer: Any) -> None:
        """Set the waiting caller's future to the answer, or to the error that refused the command."""
        if self.future.done():
            return
        if isinstance(answer, CoditectError):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)

    def undone(self) -> None:
        """Raise a retryable error in the waiting caller, because this dispatcher no longer works on the shard."""
        self.done(StoreUnavailable("The shard went to another dispatcher; ask again"))


NOTHING = Nothing()


@dataclass(frozen=True, slots=True)
class RebuildAnswer:
    """The callbacks of the command for a shard's rebuild: call `go_on` after its commit, `retry` 0.2 s after a refusal.

    By the command a shard publishes its tasks again, or, if the broker has its data, marks them as perhaps missing.
    """

    go_on: Callable[[int], None]
    retry: Callable[[], None]
    settle: Settle

    def done(self, answer: Any) -> None:
        """Call `go_on` after a rebuild's commit, `retry` 0.2 s after its refusal, and pass the answer to `settle`."""
        if isinstance(answer, CoditectError):
            asyncio.get_running_loop().call_later(REBUILD_RETRY_SECONDS, self.retry)
        else:
            self.go_on(answer)
        self.settle.done(answer)

    def undone(self) -> None:
        """Pass on to `settle` that the rebuild was not recorded, because this dispatcher left the shard."""
        self.settle.undone()


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """The callbacks that settle an agent's refused result once a failed attempt is recorded in its place."""

    settle: Settle
    refusal: CoditectError

    def done(self, answer: Any) -> None:
        """Pass the refusal to the refused result's callbacks, whether the failed attempt could be recorded or not."""
        self.settle.done(self.refusal)

    def undone(self) -> None:
        """Return the refused result's message, so that the shard's next owner tries to record the result again."""
        self.settle.undone()


@dataclass(frozen=True, slots=True)
class Answered:
    """The callbacks that call `act` with the answer, or the error that refused the command; None if not applied."""

    act: Callable[[Any], None]

    def done(self, answer: Any) -> None:
        """Call `act` after the command was committed or refused."""
        self.act(answer)

    def undone(self) -> None:
        """Call `act` with None, because this dispatcher no longer works on the shard."""
        self.act(None)
