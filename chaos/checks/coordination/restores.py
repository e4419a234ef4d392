"""The check that a restore discards the nodes after its checkpoint, compensates them as planned, and reruns them.

Every claim of a node belongs to a *generation*: the number of restores before it that discarded the node. What an
execution of one generation made must not be met in another one, neither as a value nor in shared state. What an
execution reads there once its node, or what follows it, was claimed again does not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation
from chaos.load.parts.restores import JOIN, LAST, LEFT, MARK, RIGHT
from coditect.workflow.definition import COMPENSATION


@dataclass(frozen=True, slots=True)
class CarriedOut:
    """A committed restore: its version in the store, and the nodes that it discards and compensates."""

    version: int
    """The version of the store at which the restore was committed."""
    discards: Collection[str]
    """The nodes that come after the checkpoint."""
    named: Collection[str]
    """The nodes that the plan of the restore named, because their handlers may have begun."""
    undone: Collection[str]
    """Those of them that the plan said would be compensated."""


def restored_whole(index: HistoryIndex) -> CheckResult:
    """Check each restore: one request made it, the discarded nodes ran again, and none of their old results counts.

    What the plan called compensated is undone, the last completed first, before a discarded node runs. Shared state is
    what it was. Nodes before the checkpoint stay as they are.
    """
    checked, violations = 0, list[str]()
    ends = {one.key: one.val.get("state") for one in index.of("census")}
    for work in index.accepted:
        if not work.val.get("discards"):
            continue
        told: list[str] = next((one.val["by"] for one in index.about("restores", work.key)), [])
        checked += len(told)
        violations += (f"{work.key} {wrong}" for wrong in _unasked(index, work, told))
        one = RestoredWork(index, work, told)
        violations += (f"{work.key} {wrong}" for wrong in one.wrong(completed=ends.get(work.key) == "completed"))
    return CheckResult("restored whole", "later nodes run again, and count", checked, tuple(violations))


def _unasked(index: HistoryIndex, work: Operation, told: Sequence[str]) -> Iterator[str]:
    """Yield an error for each restore that was refused, unrequested or made twice, and each confirmed one not made."""
    asked = {one.val["by"]: one for one in index.about("restore", work.key)}
    for by, many in Counter(told).items():
        if by not in asked or not asked[by].possible:
            yield f"was restored by {by}, which was refused, or not asked for"
        if many > 1:
            yield f"was restored {many} times by {by}"
    yield from (f"was not restored by {by}" for by, one in asked.items() if one.happened and by not in told)


class RestoredWork:
    """A workflow in a recorded history, with its restores, from which follows how often each node was discarded."""

    def __init__(self, index: HistoryIndex, work: Operation, told: Sequence[str]) -> None:
        """Find the workflow's restores in the history; `told` has each one's requester, in the ledger's order."""
        self._index = index
        self._work = work.key
        self._nodes: Collection[str] = work.val["nodes"]
        asked = {one.val["by"]: one.val for one in index.about("restore", work.key)}
        committed = {one.val["by"]: one.val["version"] for one in index.versioned("restored", work.key)}
        self._restores = [
            CarriedOut(
                committed[by], work.val["discards"][asked[by]["checkpoint"]], asked[by]["named"], asked[by]["undone"]
            )
            for by in told
            if by in asked and by in committed
        ]

    def wrong(self, *, completed: bool) -> Iterator[str]:
        """Yield each error of the workflow's restores to checkpoints.

        Results, and the compensations of the last restore, are checked only if the workflow `completed`.
        """
        for number, restore in enumerate(self._restores):
            until = self._restores[number + 1].version if number + 1 < len(self._restores) else None
            if completed or until is not None:
                yield from self._undone(restore, until)
            yield from self._stayed(restore, until)
            yield from self._unseen(restore, number)
        for name in self._nodes:
            if not name.endswith(COMPENSATION):
                yield from self._mixed(name)
                if completed:
                    yield from self._counted(name)

    def _claims(self, name: str) -> list[Operation]:
        return self._index.versioned("claim", f"{self._work}:{name}")

    def _version_of(self, name: str, fence: int) -> int:
        """Return the store's version at which a node's execution with a fence was claimed; 0 when no claim is known."""
        before = [(one.val["fence"], one.val["version"]) for one in self._claims(name) if one.val["fence"] <= fence]
        return int(max(before)[1]) if before else 0

    def _generation(self, name: str, version: int) -> int:
        return sum(restore.version <= version and name in restore.discards for restore in self._restores)

    def _made_in(self, made: str) -> tuple[str, int]:
        """Return the node of the execution `<task id>@<fence>`, and how many earlier restores had discarded it."""
        key, _, fence = made.rpartition("@")
        name = key.rpartition(":")[2]
        return name, self._generation(name, self._version_of(name, int(fence)))

    def _counted(self, name: str) -> Iterator[str]:
        """Yield an error if a node's recorded result is from before the last restore that discarded the node."""
        generations = sum(name in restore.discards for restore in self._restores)
        for one in self._index.about("result", f"{self._work}:{name}"):
            if one.val.get("by") is not None:
                given = self._generation(name, self._version_of(name, one.val["by"]))
                if given != generations:
                    yield f"has a result of {name} of run {given}, and it was discarded {generations} times"

    def _mixed(self, name: str) -> Iterator[str]:
        """Yield an error for each execution of a node that got a discarded result, or wrong shared state."""
        key = f"{self._work}:{name}"
        for one in self._index.about("execute", key):
            version = self._version_of(name, one.val["fence"])
            yield from (f"gave {name} {told}" for told in self._former(one.val["after"], version))
        for one in self._index.about("saw", key):
            if self._is_late(name, one):
                continue
            version, trail = self._version_of(name, one.val["fence"]), one.val["trail"]
            yield from (f"let {name} see {told}" for told in self._former(trail.values(), version))
            there = one.val["there"]
            if name not in (MARK, JOIN) and (there is None) is not (name == LAST):
                yield f"let {name} see {there} in place of what was there"
            if missing := [before for before in _before(self._index, key) if before not in trail]:
                yield f"let {name} see nothing of {missing}"

    def _is_late(self, name: str, saw: Operation) -> bool:
        """Tell whether another attempt or a successor of the node was claimed before this attempt read shared state.

        An attempt that stood still meanwhile reads what is there by then; only its writes are refused.
        """
        since = self._version_of(name, saw.val["fence"])
        others = [*self._claims(name), *(self._claims(JOIN) if name in (LEFT, RIGHT) else ())]
        return any(one.val["version"] > since and one.first < saw.first for one in others)

    def _former(self, values: Collection[str], version: int) -> Iterator[str]:
        for made in values:
            name, given = self._made_in(made)
            if given != (wanted := self._generation(name, version)):
                yield f"{made} of its run {given}, in run {wanted}"

    def _stayed(self, restore: CarriedOut, until: int | None) -> Iterator[str]:
        """Yield an error for each node before the checkpoint that was claimed again after the restore."""
        for name in self._nodes:
            if name.endswith(COMPENSATION) or name in restore.discards:
                continue
            if any(_is_between(one, restore.version, until) for one in self._claims(name) if one.happened):
                yield f"ran {name} again, which came before the checkpoint"

    def _unseen(self, restore: CarriedOut, number: int) -> Iterator[str]:
        """Yield an error for each discarded node that began before the restore but is missing in the restore's plan."""
        for name in restore.discards:
            since = max((one.version for one in self._restores[:number] if name in one.discards), default=0)
            begun = any(one.happened and _is_between(one, since, restore.version) for one in self._claims(name))
            if begun and name not in restore.named:
                yield f"discarded {name}, which had begun, and the plan did not name it"

    def _undone(self, restore: CarriedOut, until: int | None) -> Iterator[str]:
        """Yield each difference between a restore's planned compensations and those that ran, and each wrong order."""
        undone: dict[str, int] = {}
        for name in self._nodes:
            if name.endswith(COMPENSATION):
                for one in self._claims(name):
                    if one.happened and _is_between(one, restore.version, until):
                        undone.setdefault(name.removesuffix(COMPENSATION), one.val["version"])
        if undone.keys() != set(restore.undone):
            yield f"undid {sorted(undone)}, and was to undo {sorted(restore.undone)}"
        ended = {name: self._completed(name, restore.version) for name in undone}
        for before, after in pairwise(sorted(undone, key=lambda name: undone[name])):
            if ended[before] < ended[after]:
                yield f"undid {before} before {after}, which completed later"
        again = [one for name in restore.discards for one in self._claims(name) if one.happened]
        first = min((one.val["version"] for one in again if _is_between(one, restore.version, until)), default=None)
        if undone and first is not None and first < max(undone.values()):
            yield "ran a discarded node before all were undone"

    def _completed(self, name: str, before: int) -> int:
        """Return the store's version of a node's last completion before version `before`; 0 when none is known."""
        known = self._index.versioned("state", f"{self._work}:{name}")
        ends = [int(one.val["version"]) for one in known if one.val["state"] == "completed"]
        return max((version for version in ends if version < before), default=0)


def _is_between(one: Operation, since: int, until: int | None) -> bool:
    version = int(one.val["version"])
    return since <= version and (until is None or version < until)


def _before(index: HistoryIndex, key: str) -> list[str]:
    return [before.rpartition(":")[2] for before in index.nodes.get(key, ())]
