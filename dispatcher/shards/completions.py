"""What becomes of whatever brought a command to a shard worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from coditect.errors import CoditectError
from dispatcher.store.errors import StoreUnavailable

Value = TypeVar("Value")

AGAIN_SECONDS = 0.2
"""Before what was refused is put on the shard worker again."""


class Settle(Protocol):
    """What becomes of whatever brought a command."""

    def done(self, answer: Any) -> None:
        """It is committed; the answer may be a CoditectError that refused it."""

    def undone(self) -> None:
        """It was not taken: it may come again, here or elsewhere."""


class Nothing:
    """Settles what the shard worker said to itself."""

    def done(self, answer: Any) -> None:
        """Nobody waits."""

    def undone(self) -> None:
        """It will be said again if it is still so."""


class CommandAnswer(Generic[Value]):
    """Keeps the answer for whoever waits for it: `await answer.future`.

    It raises what refused the command, and StoreUnavailable (retryable) when the shard went to another dispatcher.
    """

    def __init__(self) -> None:
        self.future: asyncio.Future[Value] = asyncio.get_running_loop().create_future()

    def done(self, answer: Any) -> None:
        """Here it is."""
        if self.future.done():
            return
        if isinstance(answer, CoditectError):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)

    def undone(self) -> None:
        """Whoever asked asks again."""
        self.done(StoreUnavailable("The shard went to another dispatcher; ask again"))


NOTHING = Nothing()


@dataclass(frozen=True, slots=True)
class RebuildAnswer:
    """Publishing goes on when the ledger knows what is to be published anew."""

    go_on: Callable[[int], None]
    again: Callable[[], None]
    settle: Settle

    def done(self, answer: Any) -> None:
        """It does; if not, it is tried again until it does."""
        if isinstance(answer, CoditectError):
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self.again)
        else:
            self.go_on(answer)
        self.settle.done(answer)

    def undone(self) -> None:
        """The shard is another's."""
        self.settle.undone()


@dataclass(frozen=True, slots=True)
class CommandRefused:
    """Settles what was refused, once the ledger knows that it was."""

    settle: Settle
    refusal: CoditectError

    def done(self, answer: Any) -> None:
        """It does, or cannot."""
        self.settle.done(self.refusal)

    def undone(self) -> None:
        """The shard is another's, which tries to do it."""
        self.settle.undone()


@dataclass(frozen=True, slots=True)
class Filled:
    """Frees the room that was kept, and says whether there may be more to fill it with."""

    free: Callable[[bool], None]

    def done(self, answer: Any) -> None:
        """What was found is claimed by now."""
        self.free(answer is True)

    def undone(self) -> None:
        """The shard is another's."""
        self.free(False)
