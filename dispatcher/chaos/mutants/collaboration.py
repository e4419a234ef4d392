"""The mutants in what agents and people do together: threads and votes."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

_THREADS = "dispatcher.coordination.threads.threads"

MUTANTS = (
    Mutant(
        "message_said_twice",
        _THREADS,
        "    known = rows.said(unit.tr, thread.id, name)\n",
        "    known = None\n",
        "a message of which the answer was lost is in its thread twice",
        ("threads kept",),
        seed=31,
    ),
    Mutant(
        "receipt_ahead",
        _THREADS,
        '    upto = min(number(body, "number", 1), thread.last) if body.get("number") else 0\n',
        "    upto = thread.last\n",
        "a participant that listens again is not told what was said while it was away",
        ("threads kept",),
        seed=31,
    ),
    Mutant(
        "half_is_enough",
        "coditect.workflow.patterns.merging",
        "        if count > half:\n",
        "        if count >= half:\n",
        "a vote is won by half of the votes",
        ("majority counts",),
        seed=41,
    ),
)
