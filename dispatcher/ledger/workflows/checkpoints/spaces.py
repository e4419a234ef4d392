"""The stored keys of shared state: the present and former versions of each key, and how a restore brings them back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coditect.errors import InputError
from coditect.wire.control import LESSONS_SPACE, workflow_space
from dispatcher.ledger import values, versions
from dispatcher.ledger.keyspace import SPACE_VERSIONS, SPACES
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.values import ValueKey
from dispatcher.ledger.workflows.checkpoints.positions import Position
from dispatcher.store.transaction import Reads

VERSIONS_KEPT = 20
"""The number of versions of a key that are kept, the present one included."""
STATE_PAGE = 500
MOST_CHANGED = 1_000
"""The largest number of keys of shared state that a restore brings back."""


@dataclass(frozen=True, slots=True)
class StateVersion:
    """The number, writer, task, time and deletion mark of one version of a key of shared state, without its value."""

    number: int
    writer: str
    task: str
    at_ms: int
    deleted: bool

    @property
    def row(self) -> tuple[Any, ...]:
        """The tuple that the store keeps of a version of shared state: number, writer, task, time, deletion mark."""
        return (self.number, self.writer, self.task, self.at_ms, int(self.deleted))

    def as_json(self) -> dict[str, Any]:
        """Return the number, writer, task, time and deletion mark of this version of shared state as a JSON object."""
        return {
            "version": self.number,
            "writer": self.writer,
            "task": self.task,
            "at_ms": self.at_ms,
            "deleted": self.deleted,
        }


NONE = StateVersion(0, "", "", 0, deleted=True)
"""The version of a key that was never written."""


def latest(tr: Reads, space: str, key: str) -> StateVersion:
    """Return the present version of a key of shared state; for a key never written, version 0, marked as deleted."""
    row = tr.get(SPACES.pack((space, key)))
    return NONE if row is None else unpack(row)


def write(unit: UnitOfWork, space: str, key: str, after: StateVersion, value: bytes | None) -> None:
    """Write the next version of a key of shared state, without a value for a deleted key; keep the last 20 versions.

    Of lessons no former version is kept: a forgotten lesson cannot be read back.

    Raises:
        ValueBeyondBound: when the value is too large.
    """
    if value is not None:
        values.put(unit.tr, value_key(space, key, after.number), value, first=True)
    row = versions.SPACE_VERSION.pack(after.row)
    unit.tr.set(SPACES.pack((space, key)), row)
    unit.tr.set(SPACE_VERSIONS.pack((space, key, after.number)), row)
    if (oldest := after.number - (1 if space == LESSONS_SPACE else VERSIONS_KEPT)) > 0:
        unit.tr.clear(SPACE_VERSIONS.pack((space, key, oldest)))
        values.clear(unit.tr, value_key(space, key, oldest))
    unit.effects.say("state.changed", space, key=key, version=after.number)


def value_key(space: str, key: str, version: int) -> ValueKey:
    """Return the key under which the value of one version of a key of shared state is stored."""
    return ValueKey(space, key, f"v{version}")


def unpack(row: bytes) -> StateVersion:
    """Decode a stored row into the version of a key of shared state that the row describes."""
    version, writer, task, at_ms, deleted = versions.SPACE_VERSION.unpack(row)
    return StateVersion(version, writer, task, at_ms, bool(deleted))


# -- restore ------------------------------------------------------------------------------------------------


def check(tr: Reads, workflow: str, position: Position) -> None:
    """Refuse a restore for which former values of a workflow's shared state are lost, or too many keys have changed.

    Raises:
        InputError: when a key was written too often since, or too many keys were.
    """
    space = workflow_space(workflow)
    for count, (key, _) in enumerate(_changed(tr, workflow, position, ""), 1):
        if _former(tr, workflow, key, position) is None:
            fix = f"restore to a later checkpoint: the last {VERSIONS_KEPT} versions of a key are kept"
            raise InputError("The shared state of this checkpoint is not kept any more", space=space, key=key, fix=fix)
        if count > MOST_CHANGED:
            fix = "restore to a later checkpoint, or keep less in shared state"
            raise InputError(
                "Too many keys were written since this checkpoint", space=space, most=MOST_CHANGED, fix=fix
            )


def bring_back(unit: UnitOfWork, workflow: str, position: Position, after: str, writer: str) -> str | None:
    """Write back the values that a workflow's shared state had at a checkpoint, as new versions of the changed keys.

    Return the last key that was written when the transaction is full, and None when all are done.
    """
    space = workflow_space(workflow)
    for key, present in _changed(unit.tr, workflow, position, after):
        former = _former(unit.tr, workflow, key, position)
        if former is None or (former.deleted and present.deleted):
            continue  # none: compensations have written the key so often since the check that what they wrote stays
        value = None if former.deleted else values.get(unit.tr, value_key(space, key, former.number))
        version = StateVersion(present.number + 1, writer, "", unit.now_ms, deleted=value is None)
        write(unit, space, key, version, value)
        if unit.is_full:
            return key
    return None


def _changed(tr: Reads, workflow: str, position: Position, after: str) -> Iterator[tuple[str, StateVersion]]:
    """Yield the keys of a workflow's shared state that were written since a checkpoint, with their present versions."""
    space = workflow_space(workflow)
    begin, end = SPACES.behind((space,), (after,))
    while found := tr.get_range(begin, end, limit=STATE_PAGE):
        for stored, row in found:
            present = unpack(row)
            if not _is_of(workflow, present, position):
                yield str(SPACES.unpack(stored)[1]), present
        begin = found[-1][0] + b"\0"


def _former(tr: Reads, workflow: str, key: str, position: Position) -> StateVersion | None:
    """Return the version that a key of shared state had at a checkpoint, 0 before its first write; None if not kept."""
    space = workflow_space(workflow)
    kept = [
        unpack(row) for _, row in tr.get_range(*SPACE_VERSIONS.range((space, key)), limit=VERSIONS_KEPT, reverse=True)
    ]
    former = next((version for version in kept if _is_of(workflow, version, position)), None)
    if former is None and kept[-1].number == 1:  # the key was first written later
        return NONE
    return former


def _is_of(workflow: str, version: StateVersion, position: Position) -> bool:
    return position.had_written(version.at_ms, version.task.removeprefix(f"{workflow}:"))
