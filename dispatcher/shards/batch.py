"""A batch: several commands to one shard, applied in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coditect.errors import CoditectError, InputError, Retryable
from coditect.model.result import Status
from dispatcher.ledger.audit import autonomy
from dispatcher.ledger.commands import (
    AgentFate,
    Asked,
    Began,
    Claimed,
    Command,
    Continue,
    Due,
    Evaluated,
    Fill,
    Finished,
    Heard,
    Look,
    Lost,
    NoQueue,
    Proposed,
    Rebuild,
    Show,
)
from dispatcher.ledger.definitions import Caches
from dispatcher.ledger.effects import Effects, NodeKey, NodeSnapshot
from dispatcher.ledger.handlers import finish, timeouts
from dispatcher.ledger.nodes import advance, ahead, claim
from dispatcher.ledger.nodes.approvals import learned
from dispatcher.ledger.ownership import leases
from dispatcher.ledger.ownership.leases import Lease
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import continuations, republish, walks
from dispatcher.shards import verbs
from dispatcher.store.errors import (
    BeyondLimit,
    RetriedByRun,
    StoreUnavailable,
    TransactionTimedOut,
    TransactionTooOld,
)
from dispatcher.store.transaction import Transaction

MOST_SLOW = 3
"""The number of tries of a batch that takes too long, before the batch counts as too large."""
_OF_THE_STORE = (BeyondLimit, RetriedByRun, StoreUnavailable, TransactionTimedOut)


@dataclass(frozen=True, slots=True)
class Batch:
    """The commands that one transaction applies to a shard, with the transaction's time, lease and capacity."""

    lease: Lease
    policy: Policy
    caches: Caches
    commands: Sequence[Command]
    confirmed: int
    """The publication number up to which the broker has confirmed all, if the batch has to record it; or else 0."""
    room: Mapping[str, int]
    now_ms: int
    chance: float
    defer_dependents: bool = False
    """Whether to leave dependents of ended nodes to later transactions, because the commands failed once before."""
    doubt: str = ""
    """Why `now_ms` may be wrong, to be logged beside it, as `ReferenceClock.doubt` says; empty without a doubt."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a committed batch: its effects outside the store, and answers to the commands that fitted."""

    effects: Effects
    answers: tuple[Any, ...]
    """The answer to each command, in order, or the CoditectError that refused the command.

    The commands after the last answered one are left for another transaction.
    """
    repeated: bool
    """Whether an earlier try of the batch may be committed, too; `effects` lacks the effects of that try."""


class BatchTooLong(CoditectError):
    """The error of a batch of commands that cannot finish within a transaction's time.

    The commands are then run one by one; a command that takes too long alone is refused.
    """


def run(tr: Transaction, batch: Batch) -> BatchResult:
    """Apply a batch of commands in one try of a transaction; refuse it once three tries have been too slow.

    Raises:
        BatchTooLong: when the batch takes too long.
        SetAside: when one piece of left-over work took the time.
        CoditectError: any error of `run_once`.
    """
    try:
        done = run_once(tr, batch)
        tr.check_age()
        if tr.earlier.slow >= MOST_SLOW:
            raise TransactionTooOld("Its commits come too late")
    except TransactionTooOld as error:
        if tr.earlier.slow + 1 < MOST_SLOW:
            raise
        if isinstance(error, continuations.Overdue) and len(batch.commands) == 1:
            raise continuations.SetAside(error.piece, overdue=True) from error
        raise BatchTooLong("It takes longer than a transaction may", commands=len(batch.commands)) from error
    return done


def run_once(tr: Transaction, batch: Batch) -> BatchResult:
    """Apply a batch's commands in order, as many as fit one transaction; return the effects and the commands' answers.

    Dependents of ended nodes are released in it or in later ones.
    Raises:
        LostLease: when the shard has another owner.
        Exception: any error of the store, and any error of a command that is not a refusal of a request.
    """
    node_keys, ending = _named(batch.commands)
    unit = UnitOfWork(tr, batch.policy, batch.caches, now_ms=batch.now_ms, chance=batch.chance, room=batch.room)
    ahead.of_batch(unit, batch.lease, node_keys, ending)
    leases.check(tr, batch.lease)
    unit.doubt = batch.doubt
    unit.follows_on = batch.policy.follow_on and len(batch.commands) == 1  # where there is more, the broker balances it
    unit.defer_dependents, unit.confirmed = batch.defer_dependents, batch.confirmed
    if len(node_keys) > 1:
        unit.expect(node_keys)
        unit.expect_ends(ending)
    answers: list[Any] = []
    for command in batch.commands:
        if answers and (tr.is_aging or (isinstance(command, Lost) and unit.is_full)):  # its input may have a MiB
            break
        answers.append(_answer(unit, command))
        if unit.ended or unit.unfit:
            advance.follow(unit, limit=0 if unit.defer_dependents else None)
    effects = unit.close()
    autonomy.count(tr, effects, batch.now_ms)
    if batch.policy.approvals is not None:
        learned.note(tr, batch.policy.shard, batch.policy.approvals, effects, batch.now_ms)
    return BatchResult(effects, tuple(answers), tr.earlier.count > 0)


def _named(commands: Sequence[Command]) -> tuple[list[NodeKey], list[NodeKey]]:
    """Return the keys of the nodes that a batch's commands name, and of the nodes that they report as completed."""
    node_keys: list[NodeKey] = []
    ending: list[NodeKey] = []
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
                | AgentFate(node_key=node_key)
                | Lost(node_key=node_key)
                | NoQueue(node_key=node_key)
            ):
                node_keys.append(node_key)
            case Proposed(node_keys=proposed) | Look(node_keys=proposed):
                node_keys += proposed
    return node_keys, ending


def _answer(unit: UnitOfWork, command: Command) -> Any:
    """Apply one command and return its answer; a refused request gets its refusal as the answer.

    An error of the store, or a damaged value, is raised, for it may come between two writes: nothing of the batch
    stays.
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
    """Have a workflow's named nodes, or all nodes of a live workflow, written to RQ; return the names that did not fit.

    The named ones are written after the commit, as many as fit the transaction; all nodes are written piece by piece.
    """
    run = unit.run(command.workflow)
    if run is None:
        return ()
    if not command.nodes and not run.state.terminal:
        walks.show(unit, NodeKey(command.workflow, advance.ROOT), "", advance.MAX_DEPENDENTS)
    for number, node in enumerate(command.nodes):
        if number and unit.is_full:  # a definition may have a MiB
            return command.nodes[number:]
        if unit.node(node_key := NodeKey(command.workflow, node)) is not None:
            unit.show(node_key)
    return ()


def look(unit: UnitOfWork, command: Look) -> list[NodeSnapshot]:
    """Return snapshots of the given nodes, in order, as many as fit one transaction; missing nodes are left out."""
    found: list[NodeSnapshot] = []
    for node_key in command.node_keys:
        if found and unit.is_full:
            break
        if unit.node(node_key) is not None:
            found.append(unit.snapshot(node_key))
    return found


def propose(unit: UnitOfWork, command: Proposed) -> int:
    """Claim the ready ones of the nodes that RQ proposes, while capacity is free; return how many were claimed.

    RQ gets the state of every other node, so that RQ queues a ready node beyond the capacity again, behind the others.
    Nodes that are too much for one transaction are left in `Effects.proposed`.
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


def fill(unit: UnitOfWork, command: Fill) -> tuple[NodeKey, ...]:
    """Claim nodes of a capability's backlog, and return those that are left for another transaction."""
    unit.add_room(command.capability, len(command.node_keys))
    for number, node_key in enumerate(command.node_keys):
        if not number % advance.AHEAD:
            unit.expect_all(command.node_keys[number : number + advance.AHEAD])
        if not unit.has_room(command.capability) or (number and unit.is_full):
            return command.node_keys[number:]
        if claim.is_readable(unit, node_key):
            claim.claim(unit, node_key)
    return ()


COMMANDS: Mapping[type, Callable[[UnitOfWork, Any], Any]] = {
    Finished: finish.finished,
    Began: finish.began,
    Heard: finish.heard,
    Claimed: finish.claimed,
    AgentFate: finish.agent_fate,
    Lost: finish.lost,
    Due: verbs.due,
    NoQueue: timeouts.no_queue,
    Proposed: propose,
    Fill: fill,
    Show: show,
    Look: look,
    Evaluated: lambda unit, command: advance.evaluated(unit, command.node_key, command.token, command.inputs),
    Continue: lambda unit, _: continuations.go_on(unit),
    Rebuild: lambda unit, command: republish.begin(unit, command.marker, command.occasion, kept=command.kept),
    Asked: verbs.ask,
}
"""The handler of each kind of command."""
