"""One turn of a shard: a batch of commands in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from coditect.errors import CoditectError, InputError, Retryable
from coditect.model.result import Status
from dispatcher.ledger import leases, outbox
from dispatcher.ledger.book import Policy, UnitOfWork
from dispatcher.ledger.commands import (
    Asked,
    Began,
    Claimed,
    Command,
    Due,
    Evaluated,
    Fill,
    Finished,
    GoOn,
    Heard,
    Look,
    Lost,
    Proposed,
    PublicationReturned,
    Rebuild,
    Show,
)
from dispatcher.ledger.definitions import Caches
from dispatcher.ledger.effects import Effects, NodeKey, NodeSnapshot
from dispatcher.ledger.handlers import finish, requests, timeouts
from dispatcher.ledger.leases import Lease
from dispatcher.ledger.nodes import advance, claim
from dispatcher.ledger.workflows import continuations, republish, walks
from dispatcher.store.errors import (
    BeyondLimit,
    RetriedByRun,
    StoreUnavailable,
    TransactionTimedOut,
    TransactionTooOld,
)
from dispatcher.store.transaction import Transaction

MOST_SLOW = 3
"""Tries of a turn that took longer than a transaction may: by then it is not the machine that stood still."""
_OF_THE_STORE = (BeyondLimit, RetriedByRun, StoreUnavailable, TransactionTimedOut)


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction is to do, and at which instant."""

    lease: Lease
    terms: Policy
    caches: Caches
    commands: Sequence[Command]
    confirmed: Collection[int]
    """Publications that the broker has by now: their outbox rows go."""
    room: Mapping[str, int]
    now_ms: int
    chance: float
    apart: bool = False
    """Whether what follows from it is left to later transactions: it was too much for one together."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a turn did."""

    effects: Effects
    answers: tuple[Any, ...]
    """To each command, in order: what was asked for, or the CoditectError that refused it. Those behind the last
    answer are left for another transaction."""
    repeated: bool
    """Whether an earlier try may be committed, too: what that one did is not among the effects."""


class TurnTooLong(CoditectError):
    """A turn that would be too old again and again: its commands are done one by one, and one alone is refused."""


def run(tr: Transaction, turn: Batch) -> BatchResult:
    """Run the turn, but not again and again when it takes longer than a transaction may.

    Raises: TurnTooLong, or SetAside when one piece of what is left over took the time; what `run_once` raises.
    """
    try:
        done = run_once(tr, turn)
        tr.check_age()
        if tr.earlier.slow >= MOST_SLOW:
            raise TransactionTooOld("Its commits come too late")
    except TransactionTooOld as error:
        if tr.earlier.slow + 1 < MOST_SLOW:
            raise
        if isinstance(error, continuations.Overdue) and len(turn.commands) == 1:
            raise continuations.SetAside(error.piece, overdue=True) from error
        raise TurnTooLong("It takes longer than a transaction may", commands=len(turn.commands)) from error
    return done


def run_once(tr: Transaction, turn: Batch) -> BatchResult:
    """Do the turn's commands in order, and what follows from them.

    Raises: LostLease; what the store raises; whatever a command raises that is no refusal of its input.
    """
    leases.check(tr, turn.lease)
    outbox.clear(tr, turn.terms.shard, turn.confirmed)
    book = UnitOfWork(tr, turn.terms, turn.caches, now_ms=turn.now_ms, chance=turn.chance, room=turn.room)
    book.follows_on = turn.terms.follow_on and len(turn.commands) == 1  # where there is more, the broker balances it
    _read_ahead(book, turn.commands)
    answers: list[Any] = []
    for command in turn.commands:
        if answers and tr.is_aging:
            break
        answers.append(_answer(book, command))
        if book.ended or book.unfit:
            advance.follow(book, most=0 if turn.apart else None)
    return BatchResult(book.close(), tuple(answers), tr.earlier.count > 0)


def _read_ahead(book: UnitOfWork, commands: Sequence[Command]) -> None:
    """Reads at once what the commands are going to ask for one by one: each read is a way to the store and back."""
    places, ending = [], []
    for command in commands:
        match command:
            case Finished(place=place, outcome=outcome):
                places.append(place)
                if outcome.status is Status.COMPLETED:
                    ending.append(place)
            case Began(started=started):
                places.append(NodeKey(started.workflow, started.node))
            case Heard(place=place) | Claimed(place=place) | Lost(place=place) | PublicationReturned(place=place):
                places.append(place)
            case Proposed(places=proposed) | Look(places=proposed):
                places += proposed
    if len(places) > 1:
        book.expect(places)
        book.expect_ends(ending)


def _answer(book: UnitOfWork, command: Command) -> Any:
    """Refusals of what is asked for are answers: a command checks before it writes.

    What the store refuses, or a value that is damaged, is no such answer, for it may come between two writes: nothing
    of the turn stays then.
    """
    try:
        return _apply(book, command)
    except (InputError, Retryable) as error:
        if not isinstance(command, Asked) or isinstance(error, _OF_THE_STORE):
            raise
        return error


def _apply(book: UnitOfWork, command: Command) -> Any:
    apply: Callable[[UnitOfWork, Any], Any] = COMMANDS[type(command)]
    return apply(book, command)


def show(book: UnitOfWork, command: Show) -> tuple[str, ...]:
    """Shows the nodes; of a workflow that has ended only those that are named. Which of these are left."""
    run = book.run(command.workflow)
    if run is None:
        return ()
    if not command.nodes and not run.state.terminal:
        walks.begin_show(book, command.workflow)
    for number, node in enumerate(command.nodes):
        if number and book.is_full:  # a definition may have a MiB
            return command.nodes[number:]
        if book.node(place := NodeKey(command.workflow, node)) is not None:
            book.show(place)
    return ()


def look(book: UnitOfWork, command: Look) -> list[NodeSnapshot]:
    """Those of the nodes that there are, as they are, as far as this transaction may."""
    found: list[NodeSnapshot] = []
    for place in command.places:
        if found and book.is_full:
            break
        if book.node(place) is not None:
            found.append(book.shown(place))
    return found


def propose(book: UnitOfWork, command: Proposed) -> int:
    """Claims what RQ proposes, if the ledger agrees and there is room; if not, RQ is told what is. How many it was.

    What is ready and has no room it has queued again, behind the others. What is too much for one transaction is left.
    """
    if command.room:
        book.add_room(command.room, len(command.places))
    claimed = 0
    for number, place in enumerate(command.places):
        if number and book.is_full:  # a node's input may have a MiB, and its definition
            book.effects.proposed += command.places[number:]
            break
        claimed += _claim_proposed(book, place)
    return claimed


def _claim_proposed(book: UnitOfWork, place: NodeKey) -> bool:
    if book.node(place) is None:
        return False
    call = book.call(place)
    if call is not None and book.has_room(call.capability) and claim.claim(book, place):
        book.effects.adopted.add(place)
        return True
    book.show(place)
    return False


def fill(book: UnitOfWork, command: Fill) -> bool:
    """Claims from the capability's backlog what there is room for; whether there may be more."""
    book.add_room(command.capability, command.room)
    places = claim.backlog(book, command.capability, command.room)
    for number, place in enumerate(places):
        if not book.has_room(command.capability) or (number and book.is_full):
            return True
        claim.claim(book, place)
    return len(places) == command.room


COMMANDS: Mapping[type, Callable[[UnitOfWork, Any], Any]] = MappingProxyType(
    {
        Finished: finish.finished,
        Began: finish.began,
        Heard: finish.heard,
        Claimed: finish.claimed,
        Lost: finish.lost,
        Due: timeouts.due,
        PublicationReturned: timeouts.returned,
        Proposed: propose,
        Fill: fill,
        Show: show,
        Look: look,
        Evaluated: lambda book, command: advance.evaluated(book, command.place, command.token, command.told),
        GoOn: lambda book, _: continuations.go_on(book),
        Rebuild: lambda book, command: republish.begin(book, command.marker, command.occasion, kept=command.kept),
        Asked: requests.ask,
    }
)
"""Every kind of command, and what it does."""
