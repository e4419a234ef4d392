"""One turn of a shard: a batch of commands in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from coditect.errors import CoditectError, InputError, Retryable
from coditect.model.result import Status
from dispatcher.ledger import leases, outbox
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
from dispatcher.ledger.unit_of_work import Policy, UnitOfWork
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
    doubt: str = ""
    """What is to be said beside an instant of `now_ms`: see `ReferenceClock.doubt`."""


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
    unit = UnitOfWork(tr, turn.terms, turn.caches, now_ms=turn.now_ms, chance=turn.chance, room=turn.room)
    unit.doubt = turn.doubt
    unit.follows_on = turn.terms.follow_on and len(turn.commands) == 1  # where there is more, the broker balances it
    unit.apart = turn.apart
    _read_ahead(unit, turn.commands)
    answers: list[Any] = []
    for command in turn.commands:
        if answers and tr.is_aging:
            break
        answers.append(_answer(unit, command))
        if unit.ended or unit.unfit:
            advance.follow(unit, most=0 if unit.apart else None)
    return BatchResult(unit.close(), tuple(answers), tr.earlier.count > 0)


def _read_ahead(unit: UnitOfWork, commands: Sequence[Command]) -> None:
    """Reads at once what the commands are going to ask for one by one: each read is a way to the store and back."""
    node_keys, ending = [], []
    for command in commands:
        match command:
            case Finished(node_key=node_key, outcome=outcome):
                node_keys.append(node_key)
                if outcome.status is Status.COMPLETED:
                    ending.append(node_key)
            case Began(started=started):
                node_keys.append(NodeKey(started.workflow, started.node))
            case (
                Heard(node_key=node_key)
                | Claimed(node_key=node_key)
                | Lost(node_key=node_key)
                | PublicationReturned(node_key=node_key)
            ):
                node_keys.append(node_key)
            case Proposed(node_keys=proposed) | Look(node_keys=proposed):
                node_keys += proposed
    if len(node_keys) > 1:
        unit.expect(node_keys)
        unit.expect_ends(ending)


def _answer(unit: UnitOfWork, command: Command) -> Any:
    """Refusals of what is asked for are answers: a command checks before it writes.

    What the store refuses, or a value that is damaged, is no such answer, for it may come between two writes: nothing
    of the turn stays then.
    """
    try:
        return _apply(unit, command)
    except (InputError, Retryable) as error:
        if not isinstance(command, Asked) or isinstance(error, _OF_THE_STORE):
            raise
        return error


def _apply(unit: UnitOfWork, command: Command) -> Any:
    apply: Callable[[UnitOfWork, Any], Any] = COMMANDS[type(command)]
    return apply(unit, command)


def show(unit: UnitOfWork, command: Show) -> tuple[str, ...]:
    """Shows the nodes; of a workflow that has ended only those that are named. Which of these are left."""
    run = unit.run(command.workflow)
    if run is None:
        return ()
    if not command.nodes and not run.state.terminal:
        walks.begin_show(unit, command.workflow)
    for number, node in enumerate(command.nodes):
        if number and unit.is_full:  # a definition may have a MiB
            return command.nodes[number:]
        if unit.node(node_key := NodeKey(command.workflow, node)) is not None:
            unit.show(node_key)
    return ()


def look(unit: UnitOfWork, command: Look) -> list[NodeSnapshot]:
    """Those of the nodes that there are, as they are, as far as this transaction may."""
    found: list[NodeSnapshot] = []
    for node_key in command.node_keys:
        if found and unit.is_full:
            break
        if unit.node(node_key) is not None:
            found.append(unit.shown(node_key))
    return found


def propose(unit: UnitOfWork, command: Proposed) -> int:
    """Claims what RQ proposes, if the ledger agrees and there is room; if not, RQ is told what is. How many it was.

    What is ready and has no room it has queued again, behind the others. What is too much for one transaction is left.
    """
    if command.room:
        unit.add_room(command.room, len(command.node_keys))
    claimed = 0
    for number, node_key in enumerate(command.node_keys):
        if number and unit.is_full:  # a node's input may have a MiB, and its definition
            unit.effects.proposed += command.node_keys[number:]
            break
        claimed += _claim_proposed(unit, node_key)
    return claimed


def _claim_proposed(unit: UnitOfWork, node_key: NodeKey) -> bool:
    if not claim.is_readable(unit, node_key) or unit.node(node_key) is None:
        return False
    call = unit.call(node_key)
    if call is not None and unit.has_room(call.capability) and claim.claim(unit, node_key):
        unit.effects.adopted.add(node_key)
        return True
    unit.show(node_key)
    return False


def fill(unit: UnitOfWork, command: Fill) -> bool:
    """Claims from the capability's backlog what there is room for; whether there may be more."""
    unit.add_room(command.capability, command.room)
    left = command.room
    for number, node_key in enumerate(claim.backlog(unit, command.capability, command.room)):
        if not left or not unit.has_room(command.capability) or (number and unit.is_full):
            return True
        if claim.is_readable(unit, node_key):
            left -= 1
            claim.claim(unit, node_key)
    return False


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
        Evaluated: lambda unit, command: advance.evaluated(unit, command.node_key, command.token, command.told),
        GoOn: lambda unit, _: continuations.go_on(unit),
        Rebuild: lambda unit, command: republish.begin(unit, command.marker, command.occasion, kept=command.kept),
        Asked: requests.ask,
    }
)
"""Every kind of command, and what it does."""
