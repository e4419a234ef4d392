"""What a batch's commands are going to ask for is read at once, and means the same as read one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from coditect import Workflow
from coditect.wire.control import Verb
from coditect.workflow.definition import Definition
from coditect.workflow.documents.document import node_document
from coditect.workflow.reference import From
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.commands import Asked, Look, Proposed
from dispatcher.ledger.definitions import Definitions
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.unit_of_work import MOST_AHEAD
from dispatcher.store.memory import View
from tests.unit.dispatcher.lone_ledger import Ledger, SlowStore, completed


def fans(sources: int, dependents: int) -> Definition:
    """Each source has so many dependents of its own, and all of them come before one node."""
    flow, last = Workflow("fans"), []
    for source in range(sources):
        before = flow.task("work", name=f"s{source:03}")
        last += [flow.task("work", name=f"d{source:03}_{number:03}", after=[before]) for number in range(dependents)]
    flow.task("work", name="end", after=last)
    return flow.definition()


async def all_at_once(ledger: Ledger) -> None:
    """Everything that is published ends in one batch."""
    published, ledger.published = ledger.published, []
    await ledger.batch(*(ledger.finished(publication, completed()) for publication in published))


@pytest.mark.parametrize("dependents", [1, MOST_AHEAD, MOST_AHEAD + 1, 3 * MOST_AHEAD])
async def test_a_batch_of_ends_releases_every_dependent(ledger: Ledger, dependents: int) -> None:
    await ledger.start(fans(3, dependents))

    await all_at_once(ledger)
    released = Counter(publication.node_key.node.partition("_")[0] for publication in ledger.published)
    await all_at_once(ledger)
    (end,) = ledger.published
    await all_at_once(ledger)

    assert released == {"d000": dependents, "d001": dependents, "d002": dependents}
    assert end.node_key.node == "end"
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_more_commands_take_no_more_reads(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ledger.database.disk, "the reads of the in-memory store are counted"
    single: Counter[str] = Counter()
    get, get_range = View.get, View.get_range

    def counted_get(view: View, key: bytes, snapshot: bool) -> bytes | None:
        single["get"] += 1
        return get(view, key, snapshot)

    def counted_range(view: View, *args: object) -> object:
        single["range"] += 1
        return get_range(view, *args)  # type: ignore[arg-type]

    async def reads(sources: int, workflow: str) -> Counter[str]:
        await ledger.start(fans(sources, 1), workflow=workflow)
        with monkeypatch.context() as patched:
            patched.setattr(View, "get", counted_get)
            patched.setattr(View, "get_range", counted_range)
            patched.setattr(View, "get_many", lambda view, keys, snapshot: [get(view, key, snapshot) for key in keys])
            patched.setattr(
                View,
                "get_ranges",
                lambda view, ranges, limit, snapshot: [
                    get_range(view, begin, end, limit, False, snapshot) for begin, end in ranges
                ],
            )
            await all_at_once(ledger)
        ledger.published.clear()
        return Counter(single)

    few = await reads(2, "few")
    single.clear()

    assert await reads(60, "many") == few
    assert few["get"]


@pytest.mark.parametrize(("expressions", "remembers", "waves"), [(False, True, 1), (True, True, 1), (False, False, 4)])
async def test_an_end_that_releases_one_node_takes_one_round_trip_when_that_node_is_remembered(
    monkeypatch: pytest.MonkeyPatch, expressions: bool, remembers: bool, waves: int
) -> None:
    delays: list[float] = []
    async with SlowStore((0.001, 0.001)) as database:
        ledger = await Ledger.open(database)
        flow = Workflow("chain")
        last = flow.task("work", name="n0")
        for number in (1, 2):
            inputs = {"before": From(f"results.n{number - 1}")} if expressions else {}
            last = flow.task("work", inputs, name=f"n{number}", after=[last])
        await ledger.start(flow.definition())
        if not remembers:
            ledger.definitions = Definitions()
        monkeypatch.setattr(database, "_sleep", _noted(delays))

        await all_at_once(ledger)

    assert [publication.node_key.node for publication in ledger.published] == ["n1"]
    assert sum(delays) == pytest.approx(0.001 * waves)


def _noted(delays: list[float]) -> Callable[[float], Awaitable[None]]:
    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    return sleep


async def test_what_is_made_in_the_turn_is_found_though_it_was_not_there_before(ledger: Ledger) -> None:
    flow = Workflow("one")
    flow.task("work", name="only")
    nodes = {node.name: node_document(node) for node in flow.definition().nodes}
    start = {"workflow": "w", "name": "one", "count": 1, "nodes": nodes}
    node_keys = (NodeKey("w", "only"), NodeKey("w", "none"))

    early, _, seen = await ledger.batch(Proposed(node_keys), Asked(Verb.START, start), Look(node_keys))

    assert early == 0
    assert [shown.node_key for shown in seen] == [NodeKey("w", "only")]
    await all_at_once(ledger)
    assert await ledger.state() is WorkflowState.COMPLETED
