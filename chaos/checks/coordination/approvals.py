"""The check that a node that needs an approval runs only after a grant, and each decision is audited once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex

EXPECTED = {
    "allowed": {("granted", "policy")},
    "asked": {("granted", "chaos")},
    "learning": {("granted", "chaos"), ("granted", "learned")},
    "routine": {("granted", "policy")},
}
"""By rule: the decisions with their authors, of which the trail of a node that ran must have exactly one."""
_PERSON = "chaos"


def approved_first(index: HistoryIndex) -> CheckResult:
    """Check that a node under an approval policy ran only with one grant, and that each decision is audited once."""
    checked, violations = 0, list[str]()
    for work in index.accepted:
        for node, rule in (work.val.get("policed") or {}).items():
            key = f"{work.key}:{node}"
            checked += 1
            violations += (f"{key} {told}" for told in _wrong(index, key, rule))
    return CheckResult("approved first", "nothing runs before its grant", checked, tuple(violations))


def _wrong(index: HistoryIndex, key: str, rule: str) -> Iterator[str]:
    trail = Counter((one.val["decision"], one.val["by"]) for one in index.about("decision", key))
    for (decision, by), many in trail.items():
        if many > 1:
            yield f"has {many} entries that it was {decision} by {by or 'nobody'}"
    runs = [one.begun for one in index.about("execute", key)]
    if not runs:
        return
    if rule not in EXPECTED:
        yield "ran although its rule refuses it"
        return
    granted = [author for author in EXPECTED[rule] if trail[author]]
    if len(granted) != 1:
        yield f"ran, and its trail has {len(granted)} grants: {sorted(trail)}"
    elif granted[0][1] == _PERSON:
        asked = [one.begun for one in index.about("grant", key) if one.possible]
        if not asked or min(asked) > min(runs):
            yield "ran before anybody granted it"
