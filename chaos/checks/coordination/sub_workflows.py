"""The check that a node runs one child workflow, gets its result, and does not end before the child."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from chaos.checks.check import CheckResult
from chaos.checks.history_index import TERMINAL, HistoryIndex, Operation


def child_ends_first(index: HistoryIndex) -> CheckResult:
    """Check that a node has at most one child workflow, ends after all nodes of the child, and has the child's result.

    The result that the next node was given is compared with the effect of a last node of the child.
    """
    children: dict[str, list[Operation]] = defaultdict(list)
    for work in index.accepted:
        if work.val.get("parent"):
            children[work.val["parent"]].append(work)
    tokens = {one.key: one.val["token"] for one in index.of("effect")}
    checked, violations = 0, list[str]()
    for work in index.accepted:
        for name, (made, last) in (work.val.get("children") or {}).items():
            node, found = f"{work.key}:{name}", children.get(f"{work.key}:{name}", [])
            checked += 1
            if len(found) > 1:
                violations.append(f"{node} ran {len(found)} children")
            for child in found:
                violations += _outlived(index, node, child)
            known = {tokens.get(f"{child.key}:{made}") for child in found}
            for run in index.about("execute", f"{work.key}:{last}"):
                if not known.issuperset(run.val["after"]):
                    violations.append(f"{node} gave {run.val['after']} to {last}, and its child made {known}")
    return CheckResult("child ends first", "a node has one child, and its result", checked, tuple(violations))


def _outlived(index: HistoryIndex, node: str, child: Operation) -> Iterator[str]:
    """Yield an error for each node of the child that changed its state after the parent's node had ended."""
    ends = [one.last for one in index.about("state", node) if one.happened and one.val["state"] in TERMINAL]
    if not ends:
        return
    for name in child.val["nodes"]:
        changed = (one for one in index.about("state", f"{child.key}:{name}") if one.happened)
        if late := [one.val["state"] for one in changed if one.first > min(ends)]:
            yield f"{node} ended, and its child's {name} was {late[0]} afterwards"
