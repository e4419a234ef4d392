"""The schedules, which start workflows at their ticks, at most one for each tick, also when dispatchers restart.

A schedule has one timer, for its next tick. The transaction that carries the tick out also starts the workflow, counts
the tick as done, and sets the timer of the next one: none of the three is ever there without the others. For that the
workflow belongs to the schedule's shard, so its id, which is derived from the schedule's name and the tick, is drawn
until it does. The same tick of the same name has the same id for ever, so that a schedule which is deleted and made
again starts none twice. A schedule that waits costs nothing but its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from coditect.errors import InputError, InvalidTask, NotFound
from coditect.model.option import read_options
from coditect.wire.control import Verb
from coditect.workflow import fields
from coditect.workflow.starters import Schedule, ScheduleOptions
from coditect.workflow.template import fill, template_expressions
from dispatcher.coordination import orders
from dispatcher.coordination.table import Table, report
from dispatcher.coordination.ticks import Ticks, read_ticks
from dispatcher.ledger import keyspace, timers, versions
from dispatcher.ledger.handlers.requests import Query, ShardChange
from dispatcher.ledger.ownership import shards
from dispatcher.ledger.timers import Timer
from dispatcher.ledger.unit_of_work import UnitOfWork
from dispatcher.ledger.workflows import control, submit
from dispatcher.ledger.workflows.queries import Body
from dispatcher.ledger.workflows.submit import text
from dispatcher.store.transaction import Reads

BY = "schedule"
"""The kind of the stored value that holds the request to start a schedule's workflow."""
UPCOMING = 5
"""The number of a schedule's next ticks that `show_schedule` tells."""
TICK = "schedule.tick"
TICK_EXPRESSION = "tick"
"""The only expression in a schedule's input: the tick as text, in the schedule's time zone."""
_FIELDS = frozenset({"schedule", "workflow", "input"})
"""What the request to make a schedule has beside the `ScheduleOptions`."""
SCHEDULES = Table(keyspace.SCHEDULES, versions.SCHEDULE, Schedule)


def create(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Make a schedule, or with `replace` change it; its first tick is the first one after now.

    Raises:
        InputError: when there is a schedule of the name, or a field is wrong.
        InvalidWorkflow: when the workflow is.
    """
    name = orders.read_name(body, BY)
    options = read_options("A schedule", ScheduleOptions, {key: body[key] for key in body.keys() - _FIELDS})
    known = SCHEDULES.read(unit.tr, name)
    if known is not None and not options["replace"]:
        fix = "choose another name, or replace it: coditect schedule create --replace"
        raise InputError("There is a schedule of this name", schedule=name, fix=fix)
    order = _order(body)
    schedule = _declared(unit, name, order["name"], options)
    if known is not None:
        kept = ("created_at", "last", "last_run", "runs", "skipped")
        schedule = replace(schedule, **{field: getattr(known, field) for field in kept})
    orders.write(unit.tr, name, BY, order)
    return _set(unit, schedule, None if options["paused"] else _ticks_of(schedule).after(unit.now_ms))


def _declared(unit: UnitOfWork, name: str, workflow: str, options: Mapping[str, Any]) -> Schedule:
    every_ms = None if options["every"] is None else fields.duration_ms(options["every"])
    jitter_ms = 0 if options["jitter"] is None else fields.duration_ms(options["jitter"])
    ticks = read_ticks(options["cron"], options["zone"], every_ms, jitter_ms, now_ms=unit.now_ms)
    return Schedule(
        name,
        workflow,
        "paused" if options["paused"] else "active",
        ticks.cron or None,
        ticks.zone if ticks.cron else None,
        every_ms,
        jitter_ms,
        options["overlap"],
        options["catch_up"],
        options["most_missed"],
        created_at=unit.now_ms,
        next=None,
        last=None,
        last_run=None,
        runs=0,
        skipped=0,
        reason="",
    )


def _order(body: Body) -> dict[str, Any]:
    """Check a schedule's workflow and input, and return the request that starts the workflow, without its id."""
    order = orders.read_order(body.get("workflow"), BY)
    template = fields.template(body.get("input"))
    for _, expression in template_expressions(template):
        if expression != TICK_EXPRESSION:
            raise InvalidTask("A schedule's input sees nothing but its tick", given=expression[:80], fix="$from: tick")
    return order | {"input": template}


def pause(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Pause a schedule: it starts nothing at its ticks until it is resumed; workflows that run go on."""
    return _set(unit, replace(_find(unit.tr, body), state="paused"), None)


def resume(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Resume a paused schedule with its first tick after now; the ticks during the pause are not made up for."""
    schedule = _find(unit.tr, body)
    if schedule.state == "active":
        return report(schedule)
    return _set(unit, replace(schedule, state="active"), _ticks_of(schedule).after(unit.now_ms))


def run(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Start a schedule's workflow now, even while paused; return a dict with its id, or None and why not.

    The schedule's next tick stays as it was.
    """
    before = _find(unit.tr, body)
    schedule = _start(unit, before, unit.now_ms, occasion="run")
    SCHEDULES.write(unit.tr, schedule)
    workflow = schedule.last_run if schedule.runs > before.runs else None
    return {"schedule": schedule.schedule, "workflow": workflow, "reason": schedule.reason}


def delete(unit: UnitOfWork, body: Body) -> dict[str, Any]:
    """Remove a schedule; the workflows that it started go on."""
    name = _find(unit.tr, body).schedule
    timers.cancel(unit.tr, "", name, TICK)
    SCHEDULES.remove(unit.tr, name)
    orders.clear(unit.tr, name, BY)
    return {"schedule": name, "deleted": True}


def tick(unit: UnitOfWork, timer: Timer) -> None:
    """Carry out a schedule's due tick, or a missed one as its catch-up policy says, and set the timer of the next."""
    schedule = SCHEDULES.read(unit.tr, timer.node)
    if schedule is None or schedule.state == "paused" or schedule.next is None:
        return
    name, ticks = schedule.schedule, _ticks_of(schedule)
    next_ms = ticks.next_to_run(schedule.next, unit.now_ms, schedule.catch_up, schedule.most_missed)
    if next_ms != schedule.next:
        unit.effects.say("schedule.missed", name, first=schedule.next, next=next_ms)
    if next_ms is not None and (due_ms := ticks.due_ms(name, next_ms)) <= unit.now_ms:
        unit.effects.tick_delays_ms.append(unit.now_ms - due_ms)
        schedule = _start(unit, replace(schedule, last=next_ms), next_ms)
        next_ms = ticks.after(next_ms)
    _set(unit, schedule, next_ms)


def _set(unit: UnitOfWork, schedule: Schedule, next_ms: int | None) -> dict[str, Any]:
    """Write a schedule's row with its next tick, set the timer of the tick, and return the schedule's report."""
    schedule = replace(schedule, next=next_ms)
    SCHEDULES.write(unit.tr, schedule)
    if next_ms is None:
        timers.cancel(unit.tr, "", schedule.schedule, TICK)
    else:
        due_ms = _ticks_of(schedule).due_ms(schedule.schedule, next_ms)
        unit.set_timer(Timer("", schedule.schedule, TICK, due_ms))
    return report(schedule)


def _start(unit: UnitOfWork, schedule: Schedule, at_ms: int, *, occasion: str = "tick") -> Schedule:
    """Start a schedule's workflow for a tick, as the overlap policy permits; return the schedule with the outcome."""
    last = unit.run(schedule.last_run) if schedule.last_run else None
    overlaps = last is not None and not last.state.terminal
    if overlaps and schedule.overlap == "skip":
        return replace(schedule, skipped=schedule.skipped + 1, reason="overlap")
    name, tick = schedule.schedule, _ticks_of(schedule).local(at_ms)
    workflow = run_id(name, at_ms, unit.shard, shards.fixed_count(unit.tr.snapshot), occasion=occasion)
    order = orders.read(unit.tr, name, BY)
    try:
        submit.start(unit, order | {"workflow": workflow, "input": fill(order.get("input"), lambda _: tick)})
    except InputError as error:  # it was checked when the schedule was made, by a version that took more
        reason = str(error)[:500]
        unit.effects.say("schedule.failed", name, tick=at_ms, reason=reason)
        return replace(schedule, reason=reason)
    if overlaps and schedule.overlap == "cancel":
        control.cancel(unit, {"workflow": schedule.last_run, "reason": f"the next run of schedule {name}"})
    return replace(schedule, last_run=workflow, runs=schedule.runs + 1, reason="")


def run_id(name: str, at_ms: int, shard: int, shard_count: int, *, occasion: str = "tick") -> str:
    """Return a UUIDv7, of the given shard, for a workflow that a schedule or trigger starts; equal inputs, equal id."""
    return shards.drawn_id(f"{occasion} {name} {at_ms}", at_ms, shard, shard_count)


def _ticks_of(schedule: Schedule) -> Ticks:
    """Return the ticks that a schedule declares."""
    return Ticks(schedule.cron or "", schedule.zone or "UTC", schedule.every_ms or 0, schedule.jitter_ms)


def _find(tr: Reads, body: Body) -> Schedule:
    """Return the row of the schedule that a request names.

    Raises:
        NotFound: when there is no such schedule.
    """
    name = text(body, "schedule")
    schedule = SCHEDULES.read(tr, name)
    if schedule is None:
        raise NotFound("There is no such schedule", schedule=name, fix="coditect schedule list")
    return schedule


def list_schedules(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one page of the schedules, sorted by name."""
    schedules, following = SCHEDULES.page(tr, body)
    return {"schedules": [*map(report, schedules)], "next": following}


def show_schedule(tr: Reads, body: Body) -> dict[str, Any]:
    """Return one schedule, with the definition and the input of its workflow, and its next ticks.

    Raises:
        NotFound: when there is no such schedule.
    """
    schedule = _find(tr, body)
    ticks, tick_ms, upcoming = _ticks_of(schedule), schedule.next, list[str]()
    while tick_ms is not None and len(upcoming) < UPCOMING:
        upcoming.append(ticks.local(tick_ms))
        tick_ms = ticks.after(tick_ms)
    order = orders.read(tr, schedule.schedule, BY)
    definition = {field: order.get(field) for field in ("name", "description", "nodes")}
    return report(schedule) | {"upcoming": upcoming, "definition": definition, "input": order.get("input")}


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
