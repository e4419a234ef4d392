"""A store whose transactions a test begins, holds open and commits by hand, each with the end it wants."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from chaos.simulated_store import Disk, View
from dispatcher.store.errors import TransactionConflict
from dispatcher.store.transaction import Transaction

Result = TypeVar("Result")


class End(StrEnum):
    """What happens to the first commit; the function is run again after all but the first of these."""

    COMMITTED = "committed"
    ANSWER_LOST = "committed, the answer lost"
    LOST = "lost, and nobody says so"
    CONFLICT = "refused for a conflict"


class Opened:
    """A transaction between its begin and its commit: where a process can be paused."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._view = View(disk)
        self.tr = Transaction(self._view, now=lambda: 0.0)

    def commit(self) -> None:
        if self._view.mutations:
            self._disk.check(self._view.reads, self._view.version)
            self._disk.apply(self._view.mutations)

    def commits(self) -> bool:
        try:
            self.commit()
        except TransactionConflict:
            return False
        return True


class Store:
    def __init__(self) -> None:
        self.disk = Disk()

    def begin(self) -> Opened:
        return Opened(self.disk)

    def run(self, body: Callable[[Transaction], Result], end: End = End.COMMITTED) -> Result:
        """Runs the function to its end; the result is that of the last try."""
        opened = self.begin()
        result = body(opened.tr)
        if end in {End.COMMITTED, End.ANSWER_LOST}:
            opened.commit()
        return result if end is End.COMMITTED else self.run(body)

    def written(self) -> list[bytes]:
        return list(self.disk.keys)
