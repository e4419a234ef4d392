"""What is removed from the ledger goes whole, and nothing goes that begins again at the same time."""

from __future__ import annotations

from coditect import Retry, Workflow
from coditect.wire.control import Verb
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.keyspace import ROOT
from dispatcher.ledger.workflows import queries, remove
from tests.unit.dispatcher.handoffs import ask_others
from tests.unit.dispatcher.ledger.nodes.test_approval_policy import answer
from tests.unit.dispatcher.ledger.nodes.test_waits import signal
from tests.unit.dispatcher.ledger.test_batch import one_node
from tests.unit.dispatcher.ledger.workflows.restored import restore
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed
from tests.unit.layers.scene import Opened

OF_THE_TRAIL = {"audit", "audit_of"}
"""What outlives its workflow."""


async def take_apart(ledger: Ledger) -> None:
    """All of the workflow goes but its first row and that of its upload."""
    before_ms = ledger.now_ms + 1
    while await ledger.database.run(lambda tr: remove.take_apart(tr, "w", before_ms=before_ms)):
        pass
    while nodes := await ledger.database.read(lambda tr: remove.nodes_of(tr, "w")):
        await ledger.database.run(lambda tr, nodes=nodes: remove.forget(tr, "w", nodes, before_ms=before_ms))  # type: ignore[misc]


async def remove_whole(ledger: Ledger) -> None:
    before_ms = ledger.now_ms + 1
    assert await ledger.database.run(lambda tr: remove.condemn(tr, "w", before_ms=before_ms))
    await take_apart(ledger)
    await ledger.database.run(lambda tr: remove.forget(tr, "w", [], before_ms=before_ms))


async def kinds_of_rows(ledger: Ledger) -> set[str]:
    """The kinds of the rows that name the workflow, by their key."""
    rows = await ledger.database.read(lambda tr: tr.get_range(*ROOT.range()))
    return {str(ROOT.unpack(key)[0]) for key, _ in rows if "w" in ROOT.unpack(key)[1:]} - OF_THE_TRAIL


async def test_nothing_is_left_of_a_workflow_that_did_all_that_leaves_rows(prompt_ledger: Ledger) -> None:
    flow = Workflow("all")
    told = flow.signal("go", name="told", after=[flow.approval("now?", name="gate")])
    flow.task("work", name="one", after=[told], retry=Retry(max_attempts=2), compensate="undo")
    await prompt_ledger.start(flow.definition())
    await answer(prompt_ledger, "gate")
    for name in ("go", "unheard"):
        await signal(prompt_ledger, name, identity=name)
    await ask_others(prompt_ledger)
    await prompt_ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "here"})
    await prompt_ledger.play(lambda _: failed(retryable=True))
    await prompt_ledger.pass_time(60)
    await prompt_ledger.play(lambda _: completed(1))
    await restore(prompt_ledger, "here")
    await prompt_ledger.play(lambda _: completed(2))
    assert await prompt_ledger.state() is WorkflowState.COMPLETED
    before = await kinds_of_rows(prompt_ledger)

    await remove_whole(prompt_ledger)

    parts = {str(ROOT.unpack(space.prefix)[0]) for space, _ in remove.PARTS}
    assert parts - before == {"awaiting", "child", "dead"}, "which have tests of their own"
    assert await kinds_of_rows(prompt_ledger) == set()


async def test_key_of_a_workflow_is_free_when_the_workflow_is_removed(ledger: Ledger) -> None:
    body = {"name": "one", "key": "k", "count": 1, "nodes": {"one": {"task": "work"}}}
    await ledger.ask(Verb.START, body | {"workflow": "w"})
    await ledger.play(lambda _: completed(1))

    await remove_whole(ledger)

    assert await ledger.ask(Verb.START, body | {"workflow": "x"}) == {"workflow": "x", "state": "accepted", "new": True}


async def test_workflow_that_begins_again_as_it_is_removed_stays(prompt_ledger: Ledger) -> None:
    await prompt_ledger.start(one_node())
    await prompt_ledger.play(lambda _: failed())
    removal = Opened(prompt_ledger.database.disk)
    assert remove.condemn(removal.tr, "w", before_ms=prompt_ledger.now_ms + 1)

    await prompt_ledger.ask(Verb.RESUME, {"workflow": "w"})

    assert not removal.commits()
    assert await prompt_ledger.state() is WorkflowState.RUNNING


async def test_workflow_that_is_sent_again_as_its_upload_is_removed_stays(prompt_ledger: Ledger) -> None:
    chunk = {"workflow": "w", "name": "two", "chunk": 1, "chunks": 2, "count": 2, "nodes": {"one": {"task": "work"}}}
    await prompt_ledger.ask(Verb.START, chunk)
    await take_apart(prompt_ledger)
    removal = Opened(prompt_ledger.database.disk)
    remove.forget(removal.tr, "w", [], before_ms=prompt_ledger.now_ms + 1)

    await prompt_ledger.start(one_node())

    assert not removal.commits()
    _, run = await prompt_ledger.database.read(lambda tr: queries.rows_of(tr, "w"))
    assert run.state is WorkflowState.RUNNING
