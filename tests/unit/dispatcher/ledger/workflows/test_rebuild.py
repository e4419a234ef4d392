"""The broker lost its data: what was published is published again, once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coditect import Retry, Workflow
from coditect.wire.control import Verb
from coditect.workflow.definition import From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import unit_of_work
from dispatcher.ledger.commands import AgentFate, Asked, Claimed, Command, Continue, Lost, NoQueue, Rebuild
from dispatcher.ledger.effects import NodeKey, Publication
from dispatcher.ledger.workflows import republish
from dispatcher.ledger.workflows.status import status
from tests.unit.dispatcher.lone_ledger import AGENT, Ledger, completed, failed, fan, wide

ONE = NodeKey("w", "one")


def names(publications: Sequence[Publication]) -> list[str]:
    return sorted(publication.node_key.node for publication in publications)


async def test_publications_are_repeated_in_pages_and_the_older_are_late(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(republish, "MAX_REPUBLISHED", 20)
    width = 2 * republish.MAX_REPUBLISHED + 7
    await ledger.start(fan(width))
    old, ledger.published = ledger.published, []
    assert len(old) == width

    (last,) = await ledger.batch(Rebuild("marker-1", "marker-1"))

    assert last == max(publication.number for publication in old)
    assert names(ledger.published) == names(old)
    assert min(one.number for one in ledger.published) > last
    await ledger.batch(ledger.finished(old[0], completed()))
    assert (await ledger.node(old[0].node_key.node)).state is TaskState.PUBLISHED
    assert ledger.seen[-1].late == 1
    await ledger.play(lambda _: completed())
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_large_inputs_are_published_anew_in_pieces(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    await ledger.start(wide(9, "work", From("input")), "x" * 600_000)
    ledger.published, ledger.seen = [], []
    monkeypatch.setattr(unit_of_work, "FULL_STEPS", 1_500_000 // unit_of_work.BYTES_PER_STEP)

    await ledger.batch(Rebuild("marker-1", "marker-1"))

    assert [len(effects.publications) for effects in ledger.seen] == [0, 3, 3, 3, 0]
    assert names(ledger.published) == [f"n{number}" for number in range(9)]


async def test_same_occasion_again_does_nothing_and_another_does_it_again(ledger: Ledger) -> None:
    await ledger.start(fan(3))
    ledger.published.clear()
    first = await ledger.batch(Rebuild("marker-1", "marker-1"))
    published = len(ledger.published)

    assert await ledger.batch(Rebuild("marker-1", "marker-1")) == first
    assert len(ledger.published) == published == 3

    await ledger.batch(Rebuild("marker-1", "a person"))
    assert len(ledger.published) == 6
    built = await ledger.database.read(lambda tr: republish.built(tr, 0))
    assert built == republish.Built("marker-1", "a person", 6, 3)


async def test_no_attempt_is_counted_and_one_that_had_begun_is_closed_as_lost(ledger: Ledger) -> None:
    await ledger.batch(ledger.began(await ledger.start_one(retry=Retry(max_attempts=2))))

    for number in range(5):
        await ledger.batch(Rebuild(f"marker-{number}", f"marker-{number}"))
        await ledger.batch(ledger.began(ledger.published[-1]))

    row = await ledger.node("one")
    assert (row.attempt, row.state) == (1, TaskState.WORKING)
    attempts = await ledger.attempts("one")
    assert [(row.attempt, row.status, row.reason) for row in attempts] == [(1, "lost", "broker_lost")] * 5
    await ledger.batch(ledger.finished(ledger.published[-1], completed()))
    assert await ledger.state() is WorkflowState.COMPLETED


async def test_walk_is_not_cut_short_by_a_person_and_has_no_part_of_what_is_published_meanwhile(ledger: Ledger) -> None:
    width = republish.MAX_REPUBLISHED + 50
    await ledger.start(fan(width))
    await ledger.batch(ledger.began(ledger.published[0]))
    ledger.published.clear()
    room, ledger.room = ledger.room, {"": 0}
    await ledger.batch(Rebuild("marker-2", "marker-2"), Rebuild("marker-2", "a person", kept=True))
    assert len({one.node_key for one in ledger.published}) == len(ledger.published)
    ledger.room = room
    await ledger.batch(Continue())

    assert len(ledger.published) == width


async def test_when_the_broker_was_kept_only_what_is_lost_later_is_published(ledger: Ledger) -> None:
    await ledger.start(fan(4))
    first, second, *_ = ledger.published
    await ledger.batch(ledger.began(first))
    ledger.published.clear()

    (last,) = await ledger.batch(Rebuild("marker-1", "a person", kept=True))
    assert (last, ledger.published) == (4, [])

    await ledger.batch(Lost(first.node_key, first.number, AGENT), Lost(second.node_key, second.number))
    await ledger.batch(*[Lost(one.node_key, one.number) for one in ledger.published])

    built = await ledger.database.read(lambda tr: republish.built(tr, 0))
    assert built == republish.Built("marker-1", "a person", last, 1, 1)


async def test_what_waits_or_has_ended_is_not_published(ledger: Ledger) -> None:
    flow = Workflow("mixed")
    done = flow.task("work", name="done")
    flow.task("work", name="retried", retry=Retry(max_attempts=3))
    flow.approval("Go on?", name="asked", after=[done])
    flow.task("work", name="later", after=["asked"])
    await ledger.start(flow)
    ends = {"done": completed(), "retried": failed(retryable=True)}
    await ledger.play(lambda publication: ends[publication.node_key.node])

    await ledger.batch(Rebuild("marker-1", "marker-1"))

    assert ledger.published == []
    assert await ledger.states() == {
        "done": TaskState.COMPLETED,
        "retried": TaskState.RETRY_WAIT,
        "asked": TaskState.AWAITING_APPROVAL,
        "later": TaskState.BLOCKED,
    }


async def test_status_says_who_works_on_what(ledger: Ledger) -> None:
    await ledger.start(fan(3))
    await ledger.batch(Rebuild("marker-1", "marker-1"))
    row = {"shard": 0, "owner": "me", "epoch": 1, "marker": "marker-1", "workflows": 1, "under_way": 3}
    assert await ledger.database.read(status) == {"shards": [row], "dispatchers": ["me"]}


DEATH: list[Command] = [Claimed(ONE, 1, AGENT), Claimed(ONE, 1, "worker-2"), AgentFate(ONE, AGENT, lives=False)]
ENDS: dict[str, tuple[float, Sequence[Command], TaskState]] = {
    "claimed too late": (10, [Claimed(ONE, 1, AGENT)], TaskState.FAILED),
    "claimed after its last death": (0, DEATH, TaskState.DEAD),
    "lost with its agent": (0, [Claimed(ONE, 1, AGENT), Lost(ONE, 1, AGENT)], TaskState.DEAD),
    "no queue": (0, [NoQueue(ONE, 1)], TaskState.RETRY_WAIT),
    "unstarted": (11, [], TaskState.FAILED),
    "canceled": (0, [Asked(Verb.CANCEL, {"workflow": "w"})], TaskState.CANCELED),
}


@pytest.mark.parametrize(("after", "commands", "state"), ENDS.values(), ids=ENDS)
async def test_nothing_that_has_ended_or_waits_is_told_as_under_way(
    ledger: Ledger, after: float, commands: Sequence[Command], state: TaskState
) -> None:
    await ledger.start_one(start_within="10s", retry=Retry(max_attempts=1))
    before = await ledger.database.read(status)

    await ledger.pass_time(after)
    for command in commands:
        await ledger.batch(command)

    told = await ledger.database.read(status)
    assert [one["shards"][0]["under_way"] for one in (before, told)] == [1, 0]
    assert await ledger.states() == {"one": state}
