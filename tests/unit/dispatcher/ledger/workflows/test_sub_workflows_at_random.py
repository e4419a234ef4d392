"""Trees of workflows that are canceled, paused, resumed and redriven in any order end whole, in pieces of any size."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Retry, Workflow
from coditect.wire.control import Verb
from coditect.workflow.definition import Definition
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.commands import Asked
from dispatcher.ledger.keyspace import CHILDREN, LIVE, RUNS, STATUSES, TIMERS, TODO
from dispatcher.ledger.rows import NodeRecord, RunRecord
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed

UNDER_CONTROL = (Verb.CANCEL, Verb.PAUSE, Verb.RESUME)


def some_tree(random: Random) -> Definition:
    """A workflow with children and grandchildren, some of which can be undone, or are tried again."""
    flows = [Workflow(name) for name in ("leaf", "middle", "root")]
    for depth, flow in enumerate(flows):
        names: list[str] = []
        for number in range(random.randint(1, 3)):
            place: Any = {"name": f"n{number}", "after": random.sample(names, random.randint(0, len(names)))}
            if depth and random.random() < 0.6:
                retry = random.choice([None, Retry(max_attempts=2)])
                flow.workflow(flows[depth - 1], retry=retry, **place)
            else:
                undo: Any = random.choice([{}, {"compensate": "undo"}])
                flow.task("work", retry=Retry(max_attempts=1), **undo, **place)
            names.append(f"n{number}")
    return flows[-1].definition()


async def some_step(ledger: Ledger, random: Random, undone_alone: set[str]) -> None:
    """Takes a step, and notes which children are asked to go on with a compensation that failed."""
    draw = random.random()
    if draw < 0.2:
        await ledger.go_on()
    elif draw < 0.35:
        runs = await ledger.database.read(lambda tr: tr.get_range(*RUNS.range()))
        verb, (key, row) = random.choice(UNDER_CONTROL), random.choice(runs)
        body = {"workflow": RUNS.unpack(key)[0], "compensate": random.random() < 0.5}
        if verb is Verb.RESUME and RunRecord.unpack(row).state is WorkflowState.COMPENSATION_FAILED:
            undone_alone.add(body["workflow"])
        await ledger.batch(Asked(verb, body))  # some are refused
    elif draw < 0.45:
        await ledger.pass_time(60)
    elif ledger.published:
        one = ledger.published.pop(random.randrange(len(ledger.published)))
        fails = one.task.capability == "work" and random.random() < 0.25
        await ledger.batch(ledger.finished(one, failed() if fails else completed()))


async def finish(ledger: Ledger) -> None:
    """Lets everything go on until nothing is left to do."""
    for _ in range(300):
        live = await ledger.database.read(lambda tr: tr.get_range(*LIVE.range()))
        for key, _ in live:
            await ledger.batch(Asked(Verb.RESUME, {"workflow": LIVE.unpack(key)[1]}))
        await ledger.go_on()
        await ledger.pass_time(60)
        await ledger.play(lambda _: completed())
        if not live:
            return
    raise AssertionError("some workflow does not end")


async def check(ledger: Ledger, undone_alone: set[str]) -> None:
    """No parent has ended before its children, the counts are right, and nothing is left.

    A child whose compensation failed goes on with it when it is resumed, though its parent has taken its end.
    """
    found = await ledger.database.read(lambda tr: tr.get_ranges([one.range() for one in (RUNS, STATUSES, CHILDREN)]))
    runs = {RUNS.unpack(key)[0]: RunRecord.unpack(row) for key, row in found[0]}
    states: dict[str, Counter[str]] = {workflow: Counter() for workflow in runs}
    for key, row in found[1]:
        states[STATUSES.unpack(key)[0]][NodeRecord.unpack(row).state.value] += 1
    for workflow, run in runs.items():
        assert +Counter(run.counts) == states[workflow]
    children = {child.decode(): CHILDREN.unpack(key)[0] for key, child in found[2]}
    for child, parent in children.items():
        ended_ms = runs[parent].finished_ms
        alone = child in undone_alone and runs[child].ended is not None
        assert ended_ms is None or runs[child].state.terminal or alone
        if runs[parent].state is WorkflowState.COMPENSATED and runs[child].ended is None:
            assert not runs[child].to_compensate or runs[child].keeps  # as the cancel of the child said
    assert sum(run.children for run in runs.values()) == len(children)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
async def test_no_parent_ends_before_its_children_whatever_is_asked_of_any_of_them(seed: int) -> None:
    random = Random(seed)
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        ledger.goes_on = random.random() < 0.5
        ledger.apart = random.random() < 0.3
        await ledger.start(some_tree(random))
        undone_alone = set[str]()

        for _ in range(random.randint(0, 40)):
            await some_step(ledger, random, undone_alone)
            await check(ledger, undone_alone)
        await finish(ledger)
        await check(ledger, undone_alone)
        left = await database.read(lambda tr: tr.get_ranges([one.range() for one in (TODO, TIMERS, LIVE)]))

    assert left == [[], [], []]
