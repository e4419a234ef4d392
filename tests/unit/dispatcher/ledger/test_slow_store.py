"""Large workflows on a store whose reads take a millisecond or two: what belongs together is read at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Workflow
from coditect.wire.json import loads
from coditect.workflow.definition import MOST_ELEMENTS, Definition
from coditect.workflow.reference import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import values, versions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.handlers.requests import VERBS, Query
from dispatcher.ledger.keyspace import VALUES
from dispatcher.ledger.nodes.inputs import FAILURE, INPUT, RESULT, body_at, value_of
from dispatcher.ledger.workflows import recover
from dispatcher.ledger.workflows.queries import result
from dispatcher.ledger.workflows.status import status
from tests.unit.dispatcher.lone_ledger import Ledger, SlowStore, completed

SLOW_SECONDS = (0.002, 0.002)
TOGETHER = 256
THOUSANDS = 3_000
"""Read one after the other they take longer than a transaction may."""


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    async with SlowStore(SLOW_SECONDS) as database:
        yield await Ledger.open(database)


async def finish_all(ledger: Ledger) -> None:
    """Every node that is published completes with its own name, as many in a transaction as a shard's worker takes."""
    while ledger.published:
        page, ledger.published = ledger.published[:TOGETHER], ledger.published[TOGETHER:]
        ledger.confirmed += [one.number for one in page]
        await ledger.batch(*[ledger.finished(one, completed(one.node_key.node)) for one in page])


def mapping(elements: int) -> Definition:
    flow = Workflow("map")
    flow.map("work", "input", limit=elements, name="each")
    return flow.definition()


async def test_a_map_of_the_most_elements_ends(ledger: Ledger) -> None:
    await ledger.start(mapping(MOST_ELEMENTS), [*range(MOST_ELEMENTS)])

    await finish_all(ledger)

    assert await ledger.state() is WorkflowState.COMPLETED
    told = await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", "each"), RESULT))
    assert told == [f"each[{number}]" for number in range(MOST_ELEMENTS)]


async def test_a_join_over_thousands_sees_their_values(ledger: Ledger) -> None:
    flow = Workflow("join")
    before = [flow.task("work", name=f"n{number}") for number in range(THOUSANDS)]
    flow.task("sum", {"n": From("length(values(results))")}, name="sum", after=before)
    await ledger.start(flow.definition())

    await finish_all(ledger)

    assert await ledger.state() is WorkflowState.COMPLETED
    given = await ledger.database.read(lambda tr: body_at(tr, NodeKey("w", "sum"), INPUT))
    assert given is not None
    assert loads(given) == {"n": THOUSANDS}


async def test_what_is_under_way_is_learnt_by_the_next_owner(ledger: Ledger) -> None:
    await ledger.start(mapping(THOUSANDS), [*range(THOUSANDS)])

    found = await ledger.database.read(lambda tr: recover.learn(tr, 0))

    assert len(found.in_flight) == THOUSANDS


async def test_whatever_is_asked_for_is_told_by_the_page(ledger: Ledger) -> None:
    flow, limit = Workflow("wide"), 1_000
    for number in range(2 * limit):
        flow.task("work", name=f"n{number}")
    await ledger.start(flow.definition())
    await finish_all(ledger)
    for number in range(limit):
        await ledger.start(mapping(1), [], workflow=f"other-{number}")

    body = {"workflow": "w", "limit": limit, "checkpoint": "n0", "node": "n0"}
    for verb, query in VERBS.items():
        if isinstance(query, Query):
            assert await ledger.database.read(lambda tr, query=query: query.read(tr, body)), verb  # type: ignore[misc]
    assert await ledger.database.read(status)
    assert await ledger.database.read(lambda tr: result(tr, {"workflow": "w"}))
    assert ledger.database.repeated == 0


@pytest.mark.parametrize(("kind", "at"), [(RESULT, "each[7]"), (INPUT, "each[7]"), (INPUT, "each")])
async def test_a_damaged_value_of_a_map_fails_it_and_says_so(ledger: Ledger, kind: str, at: str) -> None:
    ledger.room = {"work": 0}
    ledger.goes_on = at != "each"
    await ledger.start(mapping(20), [*range(20)])
    if kind == RESULT:
        await ledger.fill("work", 19)
        await finish_all(ledger)
        await ledger.database.run(lambda tr: values.put(tr, values.ValueKey("w", at, kind), b"7"))
    key = VALUES.pack(("w", at, kind))
    await ledger.database.run(lambda tr: tr.set(key, versions.VALUE.pack((1, b"\0" * 32, b"x"))))
    ledger.goes_on = True
    await ledger.go_on()
    await ledger.fill("work", 20)
    if kind == RESULT:
        last = next(one for one in ledger.published)
        ledger.published.clear()
        await ledger.batch(ledger.finished(last, completed(1)))
    await finish_all(ledger)

    assert await ledger.state() is WorkflowState.FAILED
    failed = at if kind == INPUT else "each"
    told = await ledger.database.read(lambda tr: value_of(tr, NodeKey("w", failed), FAILURE))
    assert (told["reason"], told["type"]) == ("damaged_value", "DamagedValue")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.floats(0.0, 0.4))
async def test_however_slow_reads_are_each_batch_does_what_fits_and_the_rest_is_done_later(
    widths: list[int], seconds: float
) -> None:
    flow = Workflow("fans")
    for number, width in enumerate(widths):
        first = flow.task("work", name=f"a{number}")
        for one in range(width):
            flow.task("work", {"s": From(f"states.a{number}")}, name=f"b{number}_{one}", after=[first])
    async with SlowStore((seconds, seconds)) as database:
        ledger = await Ledger.open(database)
        await ledger.start(flow.definition())
        await finish_all(ledger)

        assert await ledger.state() is WorkflowState.COMPLETED
        assert Counter((await ledger.states()).values()) == {TaskState.COMPLETED: len(widths) + sum(widths)}
        assert database.repeated == 0


async def test_what_follows_is_left_to_others_where_one_transaction_was_too_small(ledger: Ledger) -> None:
    await ledger.start(mapping(3), [1, 2, 3])
    ledger.apart, ledger.goes_on = True, False

    await ledger.batch(*[ledger.finished(one, completed(1)) for one in ledger.published])
    recorded = (await ledger.states())["each"]
    ledger.apart, ledger.goes_on = False, True
    await ledger.go_on()

    assert recorded is TaskState.WORKING
    assert await ledger.state() is WorkflowState.COMPLETED
    assert replace(await ledger.run(), lasts={}).todo == 0
