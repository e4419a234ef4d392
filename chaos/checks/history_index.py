"""A chaos run's recorded history, sorted for checks: operations with a beginning and an end, by name and by key."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chaos.history import UNENDED, HistoryEntry, Type

FAULTS = ("kill", "stop", "cut", "part", "wipe")
"""The names of operations that are faults of a process or server; each ends when its victim has recovered.

The end of an agent that a task asked to end, a `restart`, is none: the agent gives back what it has.
"""
_RUN_AGAIN = frozenset({"redrive", "restore", "resume"})
"""The names of requests by which ended nodes run again; the resume of a workflow that has failed redrives it."""
TERMINAL = frozenset({"completed", "failed", "canceled", "rejected", "skipped", "dead"})


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation in a history, from its invocation to its end; without an invocation it is an instant."""

    f: str
    key: str
    proc: str
    val: Mapping[str, Any]
    begun: float
    """The time of the operation's beginning, in seconds."""
    first: int
    """The index of the operation's first entry in the history, for an order where clocks are too coarse."""
    ended: float = UNENDED
    last: float = UNENDED
    """The index of the operation's last entry in the history; infinite without an end."""
    outcome: Type = Type.INFO

    @property
    def happened(self) -> bool:
        """Tell whether the operation certainly took place."""
        return self.outcome is Type.OK

    @property
    def possible(self) -> bool:
        """Tell whether the operation may have taken place: it did not end as failed."""
        return self.outcome is not Type.FAIL

    def open_at(self, instant: float) -> bool:
        """Tell whether the operation had begun and not ended at the instant."""
        return self.begun <= instant < self.ended


def operations(entries: Iterable[HistoryEntry]) -> list[Operation]:
    """Join the entries of a chaos run's history into operations, in the order of their beginnings.

    An end belongs to the newest open operation of the same process, name and key: an older open one is of a process
    that died. An execution's end has its fence, too: one process may execute a node a second time, for a new owner of
    its shard, while the first execution still runs.
    """
    found: list[Operation] = []
    open_: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for place, entry in enumerate(entries):
        alike = open_[entry.proc, entry.f, entry.key]
        if entry.type is Type.INVOKE:
            alike.append(len(found))
            found.append(Operation(entry.f, entry.key, entry.proc, entry.val, entry.t, place))
        elif alike:
            number = alike.pop(_newest(found, alike, entry))
            begun = found[number]
            val = {**begun.val, **entry.val}
            found[number] = replace(begun, val=val, ended=entry.t, last=place, outcome=entry.type)
        else:
            facts = (entry.f, entry.key, entry.proc, entry.val)
            found.append(Operation(*facts, entry.t, place, ended=entry.t, last=place, outcome=entry.type))
    return found


def _newest(found: Sequence[Operation], alike: Sequence[int], entry: HistoryEntry) -> int:
    """Return the index in `alike` of the operation that an entry ends: the newest, if possible with the same fence."""
    fence = entry.val.get("fence") if entry.f == "execute" else None
    fenced = (place for place in reversed(range(len(alike))) if found[alike[place]].val.get("fence") == fence)
    return -1 if fence is None else next(fenced, -1)


class HistoryIndex:
    """The operations of a chaos run's history, indexed by name and key, in the order of their beginnings."""

    def __init__(self, entries: Iterable[HistoryEntry]) -> None:
        self._by_f: dict[str, list[Operation]] = defaultdict(list)
        self._by_key: dict[str, dict[str, list[Operation]]] = defaultdict(lambda: defaultdict(list))
        self._redrives: dict[str, list[int]] = defaultdict(list)
        self.processes: set[str] = set()
        """The names of the processes that did something."""
        for one in operations(entries):
            self.processes.add(one.proc)
            self._by_f[one.f].append(one)
            self._by_key[one.f][one.key].append(one)
            if one.f in _RUN_AGAIN and one.possible:
                self._redrives[_work_of(one.key) if one.f == "redrive" else one.key].append(one.first)

    def of(self, f: str) -> Sequence[Operation]:
        """Return all operations with the given name, such as `claim`."""
        return self._by_f.get(f, ())

    def about(self, f: str, key: str) -> Sequence[Operation]:
        """Return all operations with the given name and key, such as the claims of one node."""
        return self._by_key[f].get(key, ()) if f in self._by_f else ()

    def by_key(self, f: str) -> Iterator[tuple[str, Sequence[Operation]]]:
        """Yield each key with its operations of the given name."""
        yield from self._by_key[f].items() if f in self._by_f else ()

    @property
    def accepted(self) -> list[Operation]:
        """The operations by which workflows and tasks were accepted, as confirmed to the client."""
        return [one for one in self.of("accept") if one.happened]

    @property
    def nodes(self) -> dict[str, tuple[str, ...]]:
        """Every node of the accepted workflows, with its predecessors."""
        return {
            f"{work.key}:{name}": tuple(f"{work.key}:{before}" for before in after)
            for work in self.accepted
            for name, after in (work.val.get("nodes") or {}).items()
        }

    @property
    def waiting(self) -> set[str]:
        """The accepted workflows' nodes with neither an execution nor a grant: waits, some approvals, sub-workflows.

        The approvals are those that a policy or the people of a contest decide.
        """
        return {
            f"{work.key}:{name}"
            for work in self.accepted
            for kind in ("timers", "signals", "approved")
            for name in work.val.get(kind) or ()
        }

    def redrives(self, node: str) -> Sequence[int]:
        """Return the indexes in the history at which redrives, resumes and restores of the node's workflow began."""
        return self._redrives.get(_work_of(node), ())

    def restores(self, node: str) -> Sequence[Operation]:
        """Return the restores of the node's workflow that may have been made; after each one the node may run again."""
        return [one for one in self.about("restore", _work_of(node)) if one.possible]

    @property
    def needed(self) -> dict[str, int]:
        """The number of predecessors that a node needs, for each node that needs fewer than all."""
        return {
            f"{work.key}:{name}": int(many)
            for work in self.accepted
            for name, many in (work.val.get("joins") or {}).items()
        }

    @property
    def priorities(self) -> dict[str, str]:
        """The priority of accepted tasks that agents execute and nothing holds up on purpose, by task id."""
        found: dict[str, str] = {}
        for work in self.accepted:
            if "priority" in work.val:
                found[work.key] = work.val["priority"]
            found |= {f"{work.key}:{name}": level for name, level in (work.val.get("priorities") or {}).items()}
        return found

    @property
    def faults(self) -> list[Operation]:
        """The faults of processes and servers, in order of time."""
        return sorted((one for f in FAULTS for one in self.of(f)), key=lambda one: one.begun)

    def versioned(self, f: str, key: str) -> list[Operation]:
        """Return the operations of a name and key that may have been committed, in order of the store's versions."""
        possible = (one for one in self.about(f, key) if one.possible)
        return sorted(possible, key=lambda one: (one.val["version"], one.first))


def _work_of(node: str) -> str:
    return node.rpartition(":")[0]
