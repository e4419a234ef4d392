"""The check that an event starts one workflow, however often it is published, even if processes or servers die."""

from __future__ import annotations

from collections import defaultdict

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation

TRIGGERED = "triggered"
"""The node of a trigger's workflow that is given the id of the event."""
BACK_SECONDS = 10.0
"""The time after which a broker that lost its data has the queue of each trigger again."""


def one_run_an_event(index: HistoryIndex) -> CheckResult:
    """Check that each event that the broker confirmed has one run, and that each run is of an event that was published.

    The event of a run is the input of its node, which is read from the agents' records. A wiped broker may lose events.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for work in index.accepted:
        if work.val.get("trigger"):
            for one in index.about("execute", f"{work.key}:{TRIGGERED}"):
                found[one.val["after"][0]].add(work.key)
    events = {one.key: one for one in index.of("event")}
    violations = [f"{event} started {len(runs)} workflows" for event, runs in found.items() if len(runs) > 1]
    violations += [f"{event} started a workflow, and was not published" for event in found if event not in events]
    for trigger in index.of("trigger"):
        lost = [key for key, one in events.items() if one.val["trigger"] == trigger.key and key not in found]
        violations += [f"{key} started nothing" for key in lost if events[key].happened and not _wiped(index, trigger)]
        if not trigger.happened:
            violations.append(f"{trigger.key} came to no end")
    return CheckResult("one run an event", "none twice, none lost", len(events), tuple(violations))


def _wiped(index: HistoryIndex, trigger: Operation) -> bool:
    """Tell whether the broker lost its data while the trigger existed, or shortly before."""
    wipes = (one for one in index.faults if one.val.get("kind") == "broker.wipe")
    return any(one.begun <= trigger.ended and one.ended + BACK_SECONDS >= trigger.begun for one in wipes)
