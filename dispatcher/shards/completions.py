"""The completions of commands to a shard worker: each settles the message or request that brought the command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from coditect.errors import CoditectError
from dispatcher.store.errors import StoreUnavailable

Value = TypeVar("Value")

AGAIN_SECONDS = 0.2
"""The seconds before a command that was refused for now is given to the shard worker again."""


class Settle(Protocol):
    """The completion of a command to a shard worker: exactly one of its two methods is called, once."""

    def done(self, answer: Any) -> None:
        """Complete a command that is committed; the answer may be a CoditectError that refused it."""

    def undone(self) -> None:
        """Handle that the command was not applied: it may come again, at this dispatcher or another."""


class Nothing:
    """The completion that does nothing, for the shard worker's own commands."""

    def done(self, answer: Any) -> None:
        """Ignore the answer to the command, because no caller waits for it."""

    def undone(self) -> None:
        """Ignore that the command was not applied; the worker creates it again if it is still needed."""


class CommandAnswer(Generic[Value]):
    """The completion that passes the answer to a waiting caller: `await answer.future`.

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
        """Refuse the command as retryable, because the shard has another owner."""
        self.done(StoreUnavailable("The shard went to another dispatcher; ask again"))


NOTHING = Nothing()


@dataclass(frozen=True, slots=True)
class RebuildAnswer:
    """The completion of a rebuild: publishing goes on once the ledger knows what to publish again."""

    go_on: Callable[[int], None]
    again: Callable[[], None]
    settle: Settle

    def done(self, answer: Any) -> None:
        """Go on with publishing; after a refusal, repeat the rebuild until it succeeds."""
        if isinstance(answer, CoditectError):
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self.again)
        else:
            self.go_on(answer)
        self.settle.done(answer)

    def undone(self) -> None:
        """Tell the waiting completion that the shard has another owner."""
        self.settle.undone()


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """The completion of a command that records a refusal, which then passes the refusal on."""

    settle: Settle
    refusal: CoditectError

    def done(self, answer: Any) -> None:
        """Pass the refusal on to the completion of the refused command."""
        self.settle.done(self.refusal)

    def undone(self) -> None:
        """Tell the refused command's completion that the shard has another owner, which tries again."""
        self.settle.undone()


@dataclass(frozen=True, slots=True)
class Filled:
    """The completion of a `Fill`: it frees the reserved room, and notes whether there may be more ready nodes."""

    free: Callable[[bool], None]

    def done(self, answer: Any) -> None:
        """Free the room that was reserved for the fill, because the nodes that it found are claimed."""
        self.free(answer is True)

    def undone(self) -> None:
        """Free the room that was reserved for the fill, because the shard has another owner."""
        self.free(False)
