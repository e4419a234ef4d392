"""The checker of decisions on an approval that nobody was asked about, since a node before it failed."""

from __future__ import annotations

import pytest

from chaos.checks.collaboration.decisions import decided_once
from chaos.checks.history_index import HistoryIndex
from chaos.history import Type
from tests.unit.chaos.collaborated import CONTESTED, GATE, Story


def failed_before_it_was_asked(first: str, *, answer: Type = Type.FAIL) -> Story:
    """A workflow whose approval failed, though two people tried to answer, and whose first node ended so."""
    story = Story(0.0)
    nodes = {"first": [], "gate": ["first"], "next": ["gate"]}
    story.work(CONTESTED, "failed", contested={"gate": "next"}, nodes=nodes)
    said = {"node": GATE, "by": "ada", "granted": True}
    story.note("client", Type.INVOKE, "answer", f"{GATE}:ada", **said)
    story.note("client", answer, "answer", f"{GATE}:ada", **said)
    story.note("reader", Type.OK, "result", f"{CONTESTED}:first", state=first, fence=7)
    story.note("reader", Type.OK, "result", GATE, state="failed", fence=0)
    return story


@pytest.mark.parametrize(("first", "violations"), [("dead", 0), ("failed", 0), ("completed", 1)])
def test_an_approval_without_a_decision_must_have_failed_with_a_node_before_it(first: str, violations: int) -> None:
    found = decided_once(HistoryIndex(failed_before_it_was_asked(first).entries))

    assert (found.checked, len(found.violations)) == (1, violations)


def test_nobody_may_be_told_that_an_answer_counts_or_have_decided_or_go_on_then() -> None:
    told = failed_before_it_was_asked("dead", answer=Type.OK)
    decided = failed_before_it_was_asked("dead")
    decided.note("reader", Type.OK, "decision", GATE, decision="granted", by="ada")
    went_on = failed_before_it_was_asked("dead")
    went_on.whole("agent-1", "execute", f"{CONTESTED}:next")

    for story in (told, decided, went_on):
        assert len(decided_once(HistoryIndex(story.entries)).violations) == 1
