"""The mutants of timers, signals and schedules."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

_SCHEDULES = "tests/unit/dispatcher/coordination/test_schedules.py::"
MUTANTS = (
    Mutant(
        "signal_lost",
        "dispatcher.ledger.nodes.waits",
        '    unit.tr.set(SIGNALS_KEPT.pack((workflow, name, number)), b"")\n',
        "",
        "a signal that comes before a node waits for it is lost",
        ("signals once",),
    ),
    Mutant(
        "signal_counted_twice",
        "dispatcher.ledger.nodes.waits",
        '    unit.tr.set(SIGNALS.pack((workflow, identity)), b"")\n',
        "",
        "a signal that is sent twice counts twice",
        ("signals once",),
    ),
    Mutant(
        "timer_early",
        "dispatcher.ledger.nodes.waits",
        "            due_ms = unit.now_ms + period_ms\n",
        "            due_ms = unit.now_ms + period_ms // 4\n",
        "a node that waits for a time goes on before it",
        ("timers fire",),
    ),
    Mutant(
        "tick_carried_out_twice",
        "dispatcher.coordination.schedules",
        "        _start(unit, record, next_ms)\n",
        '        _start(unit, record, next_ms)\n        _start(unit, record, next_ms, occasion="again")\n',
        "a tick of a schedule starts two workflows",
        ("one run a tick",),
        seed=6,
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
        ("one run a tick",),
        seed=6,
    ),
)
