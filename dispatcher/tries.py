"""The tries of one turn: the store repeats a transaction until it is committed."""

from __future__ import annotations

from coditect.errors import CoditectError
from dispatcher import turn
from dispatcher.layers.ledger import left_over
from dispatcher.store.errors import TransactionTooOld
from dispatcher.store.transaction import Transaction

MOST_OVERDUE = 3
"""Tries of a turn that took longer than a transaction may: by then it is not the machine that stood still."""


class TurnTooLong(CoditectError):
    """A turn that would be too old again and again: its commands are done one by one, and one alone is refused."""


class Tries:
    """The transaction function of a turn, and how often it was tried.

    Raises, as it: what `run` raises; TurnTooLong instead of the store's word when that came too often. Of what is left
    over the piece that takes too long is set aside then, and the turn may be tried again: SetAside.
    """

    __slots__ = ("_aged", "_overdue", "_turn", "count")

    def __init__(self, one: turn.Turn) -> None:
        self._turn = one
        self._overdue = 0
        self._aged = False
        """Whether the try before took so long that its commit may have been too late."""
        self.count = 0

    def __call__(self, tr: Transaction) -> turn.Done:
        """One try."""
        self.count += 1
        self._overdue += self._aged
        self._aged = False
        try:
            done = turn.run(tr, self._turn)
            tr.check_age()
            self._aged = tr.is_aging
            if self._overdue >= MOST_OVERDUE:
                raise TransactionTooOld("Its commits come too late")
        except TransactionTooOld as error:
            self._overdue += 1
            if self._overdue < MOST_OVERDUE:
                raise
            if isinstance(error, left_over.Overdue) and len(self._turn.commands) == 1:
                raise left_over.set_aside(self._turn.terms, error.piece, error) from error
            raise TurnTooLong("It takes longer than a transaction may", commands=len(self._turn.commands)) from error
        return done
