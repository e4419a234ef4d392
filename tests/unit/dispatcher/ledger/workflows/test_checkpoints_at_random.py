"""Restores among redrives, failures and ends in any order, in pieces of any size: no end counts twice, none is lost."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect.errors import InputError, Retryable
from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.workflow.definition import Call, Definition
from coditect.workflow.states import TaskState
from dispatcher.ledger.commands import Asked, GoOn
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import AGAIN, COMPENSATE
from dispatcher.ledger.nodes.advance import MOST_STEPS
from dispatcher.ledger.workflows.checkpoints import requests
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.ledger.workflows.restored import restore
from tests.unit.dispatcher.ledger.workflows.test_redrive_at_random import check_tallies, some_graph
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, few_steps


class Agents:
    """Agents that fail at random; what they did and undid, and under which fences."""

    def __init__(self, random: Random, *, fail: float) -> None:
        self.random = random
        self.fail = fail
        self.fences: dict[str, int] = {}
        self.effects: Counter[str] = Counter()

    def __call__(self, publication: Publication) -> Outcome:
        name, fence = publication.node_key.node, publication.task.owner.fence if publication.task.owner else 0
        assert fence > self.fences.get(name, 0), f"{name} runs under an old fence"
        self.fences[name] = fence
        if self.random.random() < self.fail:
            return failed()
        self.effects[name.removesuffix(".compensate")] += -1 if name.endswith(".compensate") else 1
        return completed(name)


async def some_restore(ledger: Ledger, random: Random) -> None:
    """Restore to a random checkpoint, and check that what stays is untouched and what does not is discarded."""
    listing = await ledger.database.read(partial(requests.listing, body={"workflow": "w"}))
    if not (told := listing["checkpoints"]):
        return
    chosen = random.choice(told)
    before = {name: await ledger.node(name) for name in await ledger.states()}
    try:
        await restore(ledger, chosen["checkpoint"])
    except (InputError, Retryable):
        return
    while (await ledger.run()).restoring is not None and ledger.goes_on is False:
        if (await ledger.state()).value == "compensating":
            return
        await ledger.batch(GoOn())
    if (await ledger.run()).restoring is not None:
        return
    for name, row in before.items():
        if row.finished_ms is not None and row.finished_ms < chosen["at_ms"] and not name.endswith(".compensate"):
            assert (await ledger.node(name)) == row
    assert (await ledger.node(chosen["node"])).state is TaskState.COMPLETED if chosen["node"] else True


async def some_step(ledger: Ledger, random: Random, act: Agents) -> None:
    ledger.now_ms += random.choice([0, 0, 1])
    draw = random.random()
    if draw < 0.15:
        await some_restore(ledger, random)
    elif draw < 0.25:
        await ledger.batch(Asked(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": f"c{random.randrange(3)}"}))
    elif draw < 0.4:
        await ledger.batch(GoOn())
    elif draw < 0.5 and not ledger.published:
        await ledger.batch(Asked(Verb.RESUME, {"workflow": "w"}))
    elif ledger.published:
        await finish(ledger, ledger.published.pop(random.randrange(len(ledger.published))), act)


async def finish(ledger: Ledger, one: Publication, act: Agents) -> None:
    row = await ledger.node(one.node_key.node)
    if row.publication != one.number or row.state not in (TaskState.PUBLISHED, TaskState.WORKING):
        known = len(ledger.seen)
        await ledger.batch(ledger.finished(one, completed("of a discarded attempt")))
        assert not ledger.seen[known].results, "a stale result counts"
        return
    await ledger.batch(ledger.finished(one, act(one)))


async def drawn(seed: int, steps: int, definition: Definition, *, goes_on: bool, fail: float) -> tuple[Ledger, Agents]:
    random = Random(seed)
    act = Agents(random, fail=fail)
    ledger = await Ledger.open(await MemoryDatabase().__aenter__())
    with pytest.MonkeyPatch.context() as patched:
        few_steps(patched, steps)
        await ledger.start(definition)
        ledger.goes_on = goes_on
        for _ in range(60):
            await some_step(ledger, random, act)
            if not any("compensate" in name for name in await ledger.states()):
                await check_tallies(ledger, definition)
        ledger.goes_on, act.fail = True, 0
        await ledger.batch(GoOn())
        while True:
            while ledger.published:
                await finish(ledger, ledger.published.pop(), act)
            run = await ledger.run()
            if run.state.value != "compensation_failed":
                break
            await ledger.ask(Verb.RESUME, {"workflow": "w"})
    return ledger, act


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, MOST_STEPS]), st.booleans())
async def test_restored_workflow_ends_with_every_end_counted_once(seed: int, steps: int, goes_on: bool) -> None:
    definition = some_graph(Random(seed))
    ledger, _ = await drawn(seed, steps, definition, goes_on=goes_on, fail=0.3)
    await check_tallies(ledger, definition)

    run = await ledger.run()
    assert run.state.terminal
    assert (run.todo, run.open, run.again, run.restoring) == (0, 0, False, None)
    assert await ledger.database.read(lambda tr: tr.get_range(*AGAIN.range())) == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, MOST_STEPS]), st.booleans(), st.sampled_from([0.0, 0.1]))
async def test_what_is_done_and_not_discarded_is_done_once_more_than_undone(
    seed: int, steps: int, goes_on: bool, fail: float
) -> None:
    plain, random = some_graph(Random(seed)), Random(seed)
    undone = {node.name for node in plain.nodes if random.random() < 0.7}
    nodes = [
        replace(node, work=replace(node.work, compensate="undo"))
        if isinstance(node.work, Call) and node.name in undone
        else node
        for node in plain.nodes
    ]
    ledger, act = await drawn(seed, steps, Definition("undone", tuple(nodes)), goes_on=goes_on, fail=fail)

    run, states = await ledger.run(), await ledger.states()
    assert run.state.terminal
    assert (run.todo, run.open, run.again, run.restoring) == (0, 0, False, None)
    listed = [name.decode() for _, name in await ledger.database.read(lambda tr: tr.get_range(*COMPENSATE.range()))]
    assert len(listed) == run.to_compensate == len(set(listed))
    done = {name: count for name, count in act.effects.items() if name in undone}
    assert {name for name, count in done.items() if count} == set(listed)
    assert set(done.values()) <= {0, 1}
    if run.ended is None:
        assert {name for name in undone if states[name] is TaskState.COMPLETED} == set(listed)
