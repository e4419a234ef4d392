"""The schedules, which start workflows at their ticks, at most one for each tick, also when dispatchers restart.

A schedule has one timer, for its next tick. The transaction that carries the tick out also starts the workflow, counts
the tick as done, and sets the timer of the next one: none of the three is ever there without the others. For that the
workflow belongs to the schedule's shard, so its id, which is derived from the schedule's name and the tick, is drawn
until it does. The same tick of the same name has the same id for ever, so that a schedule which is deleted and made
again starts none twice. A schedule that waits costs nothing but its row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from coditect.errors import InputError, InvalidTask
from coditect.model.option import read_options
from coditect.wire.control import Verb
from coditect.workflow import fields
from coditect.workflow.starters import ScheduleOptions
from coditect.workflow.template import fill, template_expressions
from dispatcher.coordination import orders
from dispatcher.coordination import schedule_rows as rows
from dispatcher.coordination.schedule_rows import Overlap, ScheduleRecord, list_schedules, show_schedule
from dispatcher.coordination.ticks import CatchUp, read_ticks
from dispatcher.ledger import timers
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control, submit
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import text

TICK = "schedule.tick"
TICK_EXPRESSION = "tick"
"""The only expression in a schedule's input: the tick as text, in the schedule's time zone."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_FIELDS = frozenset({"schedule", "workflow", "input"})
"""What the request to make a schedule has beside the `ScheduleOptions`."""


def create(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Make a schedule, or with `replace` change it; its first tick is the first one after now.

    Raises:
        InputError: when there is a schedule of the name, or a field is wrong.
        InvalidWorkflow: when the workflow is.
    """
    name = text(body, "schedule")
    if _NAME.fullmatch(name) is None:
        raise InvalidTask("A schedule's name is letters, digits, dots, hyphens and _", given=name[:120])
    options = read_options("A schedule", ScheduleOptions, {key: body[key] for key in body.keys() - _FIELDS})
    known = rows.read(unit.tr, name)
    if known is not None and not options["replace"]:
        fix = "choose another name, or replace it: coditect schedule create --replace"
        raise InputError("There is a schedule of this name", schedule=name, fix=fix)
    order = _order(body)
    record = _record(unit, name, order["name"], options)
    if known is not None:
        record.created_ms, record.last_ms, record.last_run = known.created_ms, known.last_ms, known.last_run
        record.runs, record.skipped = known.runs, known.skipped
    orders.write(unit.tr, name, rows.BY, order)
    _set(unit, record, None if record.paused else record.ticks.after(unit.now_ms))
    return record.as_json()


def _record(unit: UnitOfWork, name: str, workflow: str, options: Mapping[str, Any]) -> ScheduleRecord:
    every_ms = None if options["every"] is None else fields.duration_ms(options["every"])
    jitter_ms = 0 if options["jitter"] is None else fields.duration_ms(options["jitter"])
    ticks = read_ticks(options["cron"], options["zone"], every_ms, jitter_ms, now_ms=unit.now_ms)
    overlap, catch_up = Overlap(options["overlap"]), CatchUp(options["catch_up"])
    record = ScheduleRecord(name, ticks, overlap, catch_up, options["most_missed"], workflow, unit.now_ms)
    record.paused = options["paused"]
    return record


def _order(body: Body) -> dict[str, Any]:
    """Check a schedule's workflow and input, and return the request that starts the workflow, without its id."""
    order = orders.read_order(body.get("workflow"), rows.BY)
    template = fields.template(body.get("input"))
    for _, expression in template_expressions(template):
        if expression != TICK_EXPRESSION:
            raise InvalidTask("A schedule's input sees nothing but its tick", given=expression[:80], fix="$from: tick")
    return order | {"input": template}


def pause(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Pause a schedule: it starts nothing at its ticks until it is resumed; workflows that run go on."""
    record = rows.find(unit.tr, body)
    record.paused = True
    _set(unit, record, None)
    return record.as_json()


def resume(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Resume a paused schedule with its first tick after now; the ticks during the pause are not made up for."""
    record = rows.find(unit.tr, body)
    if record.paused:
        record.paused = False
        _set(unit, record, record.ticks.after(unit.now_ms))
    return record.as_json()


def run(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Start a schedule's workflow now, even while paused; return a dict with its id, or None and why not.

    The schedule's next tick stays as it was.
    """
    record = rows.find(unit.tr, body)
    workflow = _start(unit, record, unit.now_ms, occasion="run")
    rows.write(unit.tr, record)
    return {"schedule": record.name, "workflow": workflow, "reason": record.reason}


def delete(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Remove a schedule; the workflows that it started go on."""
    record = rows.find(unit.tr, body)
    timers.cancel(unit.tr, "", record.name, TICK)
    rows.remove(unit.tr, record.name)
    return {"schedule": record.name, "deleted": True}


def tick(unit: UnitOfWork, timer: Timer) -> None:
    """Carry out a schedule's due tick, or a missed one as its catch-up policy says, and set the timer of the next."""
    record = rows.read(unit.tr, timer.node)
    if record is None or record.paused or record.next_ms is None:
        return
    ticks, expected_ms = record.ticks, record.next_ms
    next_ms = ticks.next_to_run(expected_ms, unit.now_ms, record.catch_up, record.most_missed)
    if next_ms != expected_ms:
        unit.effects.say("schedule.missed", record.name, first=expected_ms, next=next_ms)
    if next_ms is not None and (due_ms := ticks.due_ms(record.name, next_ms)) <= unit.now_ms:
        unit.effects.tick_delays_ms.append(unit.now_ms - due_ms)
        _start(unit, record, next_ms)
        next_ms = ticks.after(next_ms)
    _set(unit, record, next_ms)


def _set(unit: UnitOfWork, record: ScheduleRecord, next_ms: int | None) -> None:
    """Write a schedule's row with its next tick, and set the timer of the tick."""
    record.next_ms = next_ms
    rows.write(unit.tr, record)
    if next_ms is None:
        timers.cancel(unit.tr, "", record.name, TICK)
    else:
        due_ms = record.ticks.due_ms(record.name, next_ms)
        unit.set_timer(Timer("", record.name, TICK, due_ms))


def _start(unit: UnitOfWork, record: ScheduleRecord, at_ms: int, *, occasion: str = "tick") -> str | None:
    """Start a schedule's workflow for a tick, as the overlap policy permits; return its id, or None if none began."""
    last = unit.run(record.last_run) if record.last_run else None
    overlaps = last is not None and not last.state.terminal
    if occasion == "tick":
        record.last_ms = at_ms
    if overlaps and record.overlap is Overlap.SKIP:
        record.skipped += 1
        record.reason = "overlap"
        return None
    workflow = run_id(record.name, at_ms, unit.shard, shards.fixed_count(unit.tr.snapshot), occasion=occasion)
    order = orders.read(unit.tr, record.name, rows.BY)
    tick = record.ticks.local(at_ms)
    try:
        submit.start(unit, order | {"workflow": workflow, "input": fill(order.get("input"), lambda _: tick)})
    except InputError as error:  # it was checked when the schedule was made, by a version that took more
        record.reason = str(error)[:500]
        unit.effects.say("schedule.failed", record.name, tick=at_ms, reason=record.reason)
        return None
    if overlaps and record.overlap is Overlap.CANCEL:
        control.cancel(unit, {"workflow": record.last_run, "reason": f"the next run of schedule {record.name}"})
    record.last_run, record.reason = workflow, ""
    record.runs += 1
    return workflow


def run_id(name: str, at_ms: int, shard: int, shard_count: int, *, occasion: str = "tick") -> str:
    """Return a UUIDv7, of the given shard, for a workflow that a schedule or trigger starts; equal inputs, equal id."""
    return shards.drawn_id(f"{occasion} {name} {at_ms}", at_ms, shard, shard_count)


def _shard_key(body: Body) -> str:
    return f"schedule:{text(body, 'schedule')}"


SCHEDULE_VERBS: Mapping[str, Query | ShardChange] = {
    Verb.SCHEDULE_CREATE: ShardChange(create, _shard_key),
    Verb.SCHEDULE_PAUSE: ShardChange(pause, _shard_key),
    Verb.SCHEDULE_RESUME: ShardChange(resume, _shard_key),
    Verb.SCHEDULE_RUN: ShardChange(run, _shard_key),
    Verb.SCHEDULE_DELETE: ShardChange(delete, _shard_key),
    Verb.SCHEDULE_LIST: Query(list_schedules),
    Verb.SCHEDULE_SHOW: Query(show_schedule),
}
SCHEDULE_TIMERS: Mapping[str, Callable[[UnitOfWork, Timer], None]] = {TICK: tick}
