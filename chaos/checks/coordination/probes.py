"""The check that an open fleet-wide circuit breaker permits at most one probe call per reset interval."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex
from chaos.load.dependency import DEPENDENCY
from coditect.model.duration import seconds

CLOCKS_MS = 200
"""How far apart the clocks of two dispatchers may be."""


def one_probe(index: HistoryIndex) -> CheckResult:
    """Check that an open breaker permits at most one probe per reset interval, and that no permit serves two calls.

    The number of a permit is the instant at which the control plane gave it, in milliseconds. Probes that processes
    made by themselves, because no dispatcher answered, have no permit.
    """
    probes = Counter(int(one.val["permit"]) for one in index.of("call") if one.val.get("permit"))
    violations = [f"permit {permit} had {many} probes" for permit, many in probes.items() if many > 1]
    interval_ms = round(1000 * seconds(DEPENDENCY.reset))
    for before, after in pairwise(sorted(probes)):
        if after - before < interval_ms - CLOCKS_MS:
            violations.append(f"permit {after} came {after - before} ms after the one before")
    return CheckResult("one probe an interval", "a fleet tries one call", probes.total(), tuple(violations))
