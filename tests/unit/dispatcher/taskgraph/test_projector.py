"""What RQ is shown of how nodes ended, without anything being read for it."""

from __future__ import annotations

import asyncio

import pytest

from coditect import From, Workflow
from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.workflow.definition import Node
from coditect.workflow.states import TaskState
from dispatcher.ledger.commands import Fill, Proposed, Show
from dispatcher.ledger.effects import NodeKey
from dispatcher.taskgraph import projector
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import MOST_RESULT_BYTES, JobState
from dispatcher.taskgraph.projector import Projector
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed

LONGEST = "x" * (MOST_RESULT_BYTES - 2)


async def shown(ledger: Ledger) -> MemoryTaskGraph:
    """What RQ has after everything that happened."""
    graph = MemoryTaskGraph()
    of_shard = Projector(graph, ledger.policy.shard, moved=lambda: None)
    for effects in ledger.seen:
        of_shard.follow(effects)
    telling = asyncio.create_task(of_shard.run())
    await of_shard.told()
    telling.cancel()
    return graph


async def run(ledger: Ledger, *ends: Outcome) -> MemoryTaskGraph:
    """A workflow whose nodes n0, n1... end like this."""
    flow = Workflow("ends")
    for number in range(len(ends)):
        flow.task("work", name=f"n{number}")
    await ledger.start(flow.definition())
    await ledger.play(lambda publication: ends[int(publication.node_key.node[1:])])
    return await shown(ledger)


async def test_a_value_is_shown_unless_it_is_long(ledger: Ledger) -> None:
    graph = await run(ledger, completed({"lines": 42}), completed(LONGEST), completed(LONGEST + "x"))

    assert [graph.result("w", f"n{number}") for number in range(3)] == [
        [b'{"lines":42}'], [f'"{LONGEST}"'.encode()], [b"null"],
    ]  # fmt: skip
    assert graph.state("w", "n2") is JobState.FINISHED


@pytest.mark.parametrize("chunk", [2, 1], ids=["whole", "in pieces"])
async def test_a_workflow_that_came_whole_is_shown_with_its_acceptance(ledger: Ledger, chunk: int) -> None:
    flow = Workflow("two")
    first = flow.task("work", name="first")
    flow.task("work", name="second", after=[first])

    await ledger.start(flow.definition(), chunk=chunk)

    accepted = ledger.seen[-1]
    whole = {
        NodeKey("w", "first"): (TaskState.PUBLISHED, ()),
        NodeKey("w", "second"): (TaskState.BLOCKED, ("first",)),
    }
    assert {one.node_key: (one.state, tuple(one.after)) for one in accepted.snapshots} == (whole if chunk == 2 else {})
    assert accepted.unshown == ([] if chunk == 2 else ["w"])


async def test_an_error_is_shown_in_a_line(ledger: Ledger) -> None:
    graph = await run(ledger, failed(), completed())

    assert graph.result("w", "n0") == [b"handler_error: ValueError: no"]
    assert graph.state("w", "n0") is JobState.FAILED


async def test_values_that_no_agent_told_are_shown_too(ledger: Ledger) -> None:
    flow = Workflow("own")
    each = flow.map("work", "input", From("item"), limit=5, name="each")
    gate = flow.approval("Go on?", after=[each], name="gate")
    flow.task("work", name="behind", after=[gate])
    await ledger.start(flow.definition(), [1, 2])
    await ledger.play(lambda publication: completed(publication.node_key.node))
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "gate", "granted": False, "by": "ada"})

    graph = await shown(ledger)

    assert graph.result("w", "each") == [b'["each[0]","each[1]"]']
    assert graph.result("w", "gate") == [b"denied"]
    assert graph.result("w", "behind") == [b"predecessor"]


async def test_a_job_that_was_made_as_it_ended_has_its_value(ledger: Ledger) -> None:
    flow = Workflow("quick")
    only: Node = flow.task("work", name="only")
    await ledger.start(flow.definition())
    ledger.seen.clear()  # it came in pieces, or RQ lost it
    await ledger.batch(ledger.finished(ledger.published.pop(), completed(7)), Show("w"))

    graph = await shown(ledger)

    assert graph.result("w", only.name) == [b"7"]


async def test_a_job_that_rq_brought_is_not_told_that_it_is_started(ledger: Ledger) -> None:
    ledger.room = {"work": 0}
    flow = Workflow("two")
    for node in ("brought", "other"):
        flow.task("work", name=node)
    await ledger.start(flow.definition())
    await ledger.batch(Proposed((NodeKey("w", "brought"),), "work"))
    await ledger.batch(Fill("work", 1))
    before = await ledger.states()

    graph = await shown(ledger)

    assert before == {"brought": TaskState.PUBLISHED, "other": TaskState.PUBLISHED}
    assert {node: graph.state("w", node) for node in before} == {
        "brought": JobState.QUEUED,  # as it was made: the bridge that took it has started it
        "other": JobState.STARTED,
    }


async def test_many_entries_that_wait_keep_no_values(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projector, "MOST_WITH_OUTCOMES", 3)

    graph = await run(ledger, completed("first"), completed("second"), failed())

    values = [graph.result("w", f"n{number}") for number in range(3)]
    assert values == [[b"null"], [b"null"], [b"handler_error"]]
