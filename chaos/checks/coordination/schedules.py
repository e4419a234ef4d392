"""The check that each tick of a schedule starts one workflow, also when the dispatcher was killed meanwhile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex
from chaos.load.generators import EVERY_SECONDS, TICKED
from coditect.workflow.fields import instant_ms


def one_run_a_tick(index: HistoryIndex) -> CheckResult:
    """Check that no tick of a schedule has two runs, that no tick between others lacks a run, and that ticks go on.

    The tick of a run is the input of its node, which is read from the agents' records.
    """
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for work in index.accepted:
        runs = index.about("execute", f"{work.key}:{TICKED}")
        if runs:
            found[work.val["schedule"]][runs[0].val["after"][0]].add(work.key)
    violations = [told for schedule, ticks in found.items() for told in _violations(schedule, ticks)]
    violations += [f"{one.key} ticked no more" for one in index.of("schedule") if not one.happened]
    return CheckResult("one run a tick", "none twice, none lost", sum(map(len, found.values())), tuple(violations))


def _violations(schedule: str, ticks: Mapping[str, set[str]]) -> list[str]:
    told = [f"tick {tick} of {schedule} has {len(runs)} runs" for tick, runs in ticks.items() if len(runs) > 1]
    for before, after in pairwise(sorted(ticks, key=instant_ms)):
        if instant_ms(after) - instant_ms(before) != 1000 * EVERY_SECONDS:
            told.append(f"{schedule} has no run between the ticks {before} and {after}")
    return told
