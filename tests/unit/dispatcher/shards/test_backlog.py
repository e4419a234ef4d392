"""The backlog of a shard: what is ready and waits for room, in the order in which it is claimed."""

from __future__ import annotations

from coditect.workflow.states import TaskState
from dispatcher.ledger.effects import NodeKey, Transition
from dispatcher.shards.backlog import Backlog


def moved(node: str, state: TaskState = TaskState.READY, level: str = "p1", capability: str = "work") -> Transition:
    return Transition(NodeKey("w", node), state, capability, level, None)


def follow(backlog: Backlog, *transitions: Transition) -> None:
    backlog.follow(transitions, {one.node_key for one in transitions})


def names(backlog: Backlog, limit: int = 9) -> list[str]:
    return [node_key.node for _, node_key in backlog.take("work", limit)]


def test_urgent_nodes_are_taken_first_and_then_the_oldest() -> None:
    backlog = Backlog()
    follow(backlog, moved("a"), moved("b", level="p2"), moved("c", level="p0"), moved("d"))

    assert names(backlog, 3) == ["c", "a", "d"]
    assert names(backlog) == ["b"]
    assert (len(backlog), names(backlog)) == (0, [])


def test_nodes_that_are_ready_no_more_or_wait_for_a_resume_are_not_in_it() -> None:
    backlog = Backlog()
    follow(backlog, moved("a"), moved("b"), moved("c", capability="other"))
    backlog.follow([moved("held")], ())
    follow(backlog, moved("a", TaskState.PUBLISHED), moved("unknown", TaskState.CANCELED))
    follow(backlog, moved("c", TaskState.FAILED, capability="other"))

    assert list(backlog) == ["work"]
    assert names(backlog) == ["b"]


def test_node_that_moves_while_it_waits_stays_in_it() -> None:
    backlog = Backlog()
    follow(backlog, moved("a"), moved("b"))

    backlog.follow([moved("a")], ())

    assert names(backlog) == ["a", "b"]


def test_nodes_that_could_not_be_claimed_wait_before_all_others() -> None:
    backlog = Backlog()
    follow(backlog, moved("a"), moved("b"), moved("c"))
    taken = backlog.take("work", 2)
    follow(backlog, moved("d"))

    backlog.put_back("work", taken)

    assert names(backlog) == ["a", "b", "c", "d"]
