"""The mutants of timers, signals and schedules."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

_WAITS = "tests/unit/dispatcher/test_waits.py::"
_SCHEDULES = "tests/unit/dispatcher/test_schedules.py::"
MUTANTS = (
    Mutant(
        "signal_lost",
        "dispatcher.ledger.nodes.waits",
        '    unit.tr.set(SIGNALS_KEPT.pack((workflow, name, number)), b"")\n',
        "",
        "a signal that comes before a node waits for it is lost",
        (f"{_WAITS}test_a_signal_that_comes_before_the_node_waits_is_kept_for_it",),
    ),
    Mutant(
        "signal_counted_twice",
        "dispatcher.ledger.nodes.waits",
        '    unit.tr.set(SIGNALS.pack((workflow, identity)), b"")\n',
        "",
        "a signal that is sent twice counts twice",
        (f"{_WAITS}test_a_signal_that_is_sent_twice_counts_once",),
    ),
    Mutant(
        "tick_twice",
        "dispatcher.coordination.schedules",
        "    workflow = run_id(record.name, at_ms, ",
        "    workflow = run_id(record.name, unit.now_ms, ",
        "a tick of a schedule that is made again starts a second workflow",
        (f"{_SCHEDULES}test_a_schedule_that_is_made_again_starts_no_tick_twice",),
    ),
    Mutant(
        "tick_lost",
        "dispatcher.coordination.schedules",
        "        next_ms = ticks.after(next_ms)\n",
        "        next_ms = ticks.after(unit.now_ms)\n",
        "a tick that is carried out late loses those that came after it",
        (f"{_SCHEDULES}test_ticks_that_were_missed_are_made_up_for",),
    ),
)
