"""The check that a vote results in the ballot of more than half of the voters who answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chaos.checks.check import CheckResult
from chaos.checks.executions import used_up
from chaos.checks.history_index import HistoryIndex, Operation

RESULT = "result"
"""The node that counts the votes."""


def majority_counts(index: HistoryIndex) -> CheckResult:
    """Check each vote's final state, and the result that its client got, against the ballots given to the voters.

    Only voters whose nodes completed have answered. Without a majority among them the vote must fail.
    """
    checked, violations = 0, list[str]()
    states = {one.key: one.val["state"] for one in index.of("result")}
    ends = {one.key: one.val.get("state") for one in index.of("census")}
    for work in index.accepted:
        ballots = work.val.get("ballots")
        if not ballots or ends.get(work.key) not in ("completed", "failed"):
            continue
        checked += 1
        cast = [ballot for node, ballot in ballots.items() if states.get(f"{work.key}:{node}") == "completed"]
        violations += (f"{work.key} {told}" for told in _wrong(index, work, cast, str(ends[work.key])))
    return CheckResult("majority counts", "a vote is what most answers say", checked, tuple(violations))


def _wrong(index: HistoryIndex, work: Operation, cast: list[str], end: str) -> Iterator[str]:
    winners = [ballot for ballot, many in Counter(cast).items() if 2 * many > len(cast)]
    for one in index.about("verdict", work.key):
        if [one.val["value"]] != winners:
            yield f"was told as {one.val['value']}, by the votes {cast}"
    if end == "completed" and not winners:
        yield f"completed without a majority, by the votes {cast}"
    if end == "failed" and winners and not used_up(index, work, f"{work.key}:{RESULT}"):
        yield f"failed, and {winners[0]} has a majority of the votes {cast}"
