"""Redrives, resumes, cancels and ends in any order, in pieces of any size: every node counts every end once."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Retry
from coditect.wire.control import Verb
from coditect.workflow.definition import After, Call, Definition, Node, OnFailure
from coditect.workflow.join import Tally
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.commands import Asked, GoOn
from dispatcher.ledger.keyspace import AGAIN
from dispatcher.ledger.nodes.advance import MOST_STEPS
from dispatcher.ledger.workflows.redrive_steps import REDRIVABLE
from dispatcher.store.memory import MemoryDatabase
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, few_steps


def some_graph(random: Random) -> Definition:
    nodes = []
    for number in range(random.randint(2, 9)):
        after = tuple(
            After(f"n{before}", random.choice(list(OnFailure)))
            for before in random.sample(range(number), random.randint(0, min(number, 4)))
        )
        join = random.choice(["all", "any", random.randint(1, len(after))]) if after else "all"
        nodes.append(Node(f"n{number}", Call("work", retry=Retry(max_attempts=1)), after, join))  # type: ignore[arg-type]
    return Definition("random", tuple(nodes))


async def check_tallies(ledger: Ledger, definition: Definition) -> None:
    """Whoever waits has counted exactly those ends that there are, once nothing is left over."""
    states, run = await ledger.states(), await ledger.run()
    assert run.counts == Counter(states.values())
    assert run.open == sum(not state.terminal for state in states.values())
    if run.todo:
        return
    assert not run.again
    before = {edge.node for node in definition.nodes for edge in node.after}
    lasts = Counter(state.value for name, state in states.items() if name not in before and state.terminal)
    assert +Counter(run.lasts) == lasts
    for node in definition.nodes:
        row = await ledger.node(node.name)
        if row.state is TaskState.BLOCKED:
            assert row.tally == tally_of(node, states)
            assert row.tally.open > 0
            assert row.tally.decision is not TaskState.READY


def tally_of(node: Node, states: dict[str, TaskState]) -> Tally:
    tally = Tally.of(node)
    for edge in node.after:
        if states[edge.node].terminal:
            tally = tally.with_end(edge.on_failure, states[edge.node])
    return tally


async def check_published(ledger: Ledger, definition: Definition, known: int) -> None:
    """What was published since then was let run by its predecessors."""
    states = await ledger.states()
    nodes = {node.name: node for node in definition.nodes}
    for one in ledger.published[known:]:
        assert tally_of(nodes[one.node_key.node], states).decision is TaskState.READY


async def some_step(ledger: Ledger, random: Random, *, pauses: bool) -> None:
    ended = [name for name, state in (await ledger.states()).items() if state in REDRIVABLE]
    draw = random.random()
    if draw < 0.25:
        await ledger.batch(GoOn())
    elif draw < 0.5 and ended:
        await ledger.batch(Asked(Verb.REDRIVE, {"workflow": "w", "node": random.choice(ended)}))
    elif ledger.published:
        one = ledger.published.pop(random.randrange(len(ledger.published)))
        await ledger.batch(ledger.finished(one, random.choice([completed(), failed()])))
    elif (await ledger.state()) is not WorkflowState.COMPLETED:
        await ledger.batch(Asked(Verb.RESUME, {"workflow": "w"}))
    if random.random() < 0.1:
        verbs = [Verb.CANCEL, Verb.RESUME, *([Verb.PAUSE, Verb.RESUME] if pauses else [])]
        await ledger.batch(Asked(random.choice(verbs), {"workflow": "w"}))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, MOST_STEPS]), st.booleans(), st.booleans())
async def test_whoever_waits_has_counted_what_has_ended(seed: int, steps: int, goes_on: bool, pauses: bool) -> None:
    random = Random(seed)
    definition = some_graph(random)
    async with MemoryDatabase() as database:
        ledger = await Ledger.open(database)
        with pytest.MonkeyPatch.context() as patched:
            few_steps(patched, steps)
            await ledger.start(definition)
            ledger.goes_on = goes_on
            for _ in range(80):
                known = len(ledger.published)
                await some_step(ledger, random, pauses=pauses)
                await check_tallies(ledger, definition)
                if not pauses and len(ledger.published) > known:
                    await check_published(ledger, definition, known)
            ledger.goes_on = True
            await ledger.batch(GoOn())
            if (await ledger.state()) is WorkflowState.PAUSED:
                await ledger.batch(Asked(Verb.RESUME, {"workflow": "w"}))
            await ledger.play(lambda _: completed(), pick=lambda waiting: random.randrange(len(waiting)))
        await check_tallies(ledger, definition)

        assert (await ledger.state()).terminal
        assert (await ledger.run()).todo == 0
        assert await ledger.database.read(lambda tr: tr.get_range(*AGAIN.range())) == []
