"""What becomes of whatever brought a command to a desk."""

from __future__ import annotations

from typing import Any, Protocol


class Settle(Protocol):
    """What becomes of whatever brought a command."""

    def done(self, answer: Any) -> None:
        """It is committed; the answer may be a CoditectError that refused it."""

    def undone(self) -> None:
        """It was not taken: it may come again, here or elsewhere."""


class Nothing:
    """Settles what the desk said to itself."""

    def done(self, answer: Any) -> None:
        """Nobody waits."""

    def undone(self) -> None:
        """It will be said again if it is still so."""


NOTHING = Nothing()
