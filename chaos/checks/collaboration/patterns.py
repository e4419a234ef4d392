"""The check that a workflow pattern joins enough results of its parallel tasks, each counted once, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation

RESULT = "result"
"""The node that is given the results of the members."""


def patterns_join(index: HistoryIndex) -> CheckResult:
    """Check each race, quorum and map: compare the result that the client got with what its parallel tasks did.

    Each value is of an execution of such a task that completed, in the order of the tasks, and there are enough. Where
    fewer than all are enough, no task begins once there are.
    """
    checked, violations = 0, list[str]()
    states = {one.key: one.val["state"] for one in index.of("result")}
    for work in index.accepted:
        members = work.val.get("members")
        if not members:
            continue
        checked += 1
        ends = {name: states.get(f"{work.key}:{name}", "") for name in members}
        for one in index.about("joined", work.key):
            wrong = _miscounted(index, work, ends, one.val["values"])
            violations += (f"{work.key} was told as {one.val['values']}, {told}" for told in wrong)
        if work.val["enough"] < len(members):
            violations += _begun_late(index, work)
    return CheckResult("patterns join", "enough results, each counted once", checked, tuple(violations))


def _miscounted(index: HistoryIndex, work: Operation, ends: Mapping[str, str], values: Sequence[str]) -> Iterator[str]:
    done = [name for name, state in ends.items() if state == "completed"]
    made = [value.rpartition("@")[::2] for value in values]
    names = [key.rpartition(":")[2] for key, _ in made]
    if names != [name for name in done if name in names]:
        yield f"and {done} had completed"
    enough = work.val["enough"]
    if "canceled" not in ends.values():  # each member had its chance
        enough = min(enough, len(done))
    if len(values) < enough or (work.val["enough"] == 1 and len(values) > 1):
        yield f"and {enough} of {done} count"
    for key, fence in made:
        runs = index.about("execute", key)
        if not any(one.happened and one.val["fence"] == int(fence) for one in runs):
            yield f"and {key} did not end under fence {fence}"


def _begun_late(index: HistoryIndex, work: Operation) -> Iterator[str]:
    """Yield an error for each parallel task of a pattern that was claimed after the node that joins their results."""
    joined = [one.val["version"] for one in index.versioned("claim", f"{work.key}:{RESULT}") if one.happened]
    for name in work.val["members"] if joined else ():
        claims = index.versioned("claim", f"{work.key}:{name}")
        if any(one.happened and one.val["version"] > min(joined) for one in claims):
            yield f"{work.key} went on with {name}, which was not wanted any more"
