"""Histories of the further parts of a load: a contested approval, a thread, a vote, a trigger, and others."""

from __future__ import annotations

from typing import Any

from dispatcher.witness.history import HistoryEntry, Type
from tests.unit.chaos.keyed import keyed

CONTESTED, THREAD, VOTE = "contested", "thread", "voted"
GATE = f"{CONTESTED}:gate"
LISTENER = "bob"
TRIGGER, RUNS = "trigger", ("run-of-1", "run-of-2")
PARENT, CHILD = "parent", "its-child"
RATED, STREAM = "chaos.rated", "streamed"


class Story:
    """A history that is told one entry after the other, a hundredth of a second apart."""

    def __init__(self, at: float) -> None:
        self.entries: list[HistoryEntry] = []
        self._at = at

    def note(self, proc: str, type_: Type, f: str, key: str, **val: Any) -> None:
        self._at = round(self._at + 0.01, 6)
        self.entries.append(HistoryEntry(self._at, proc, type_, f, key, val))

    def whole(self, proc: str, f: str, key: str, **val: Any) -> None:
        self.note(proc, Type.INVOKE, f, key, **val)
        self.note(proc, Type.OK, f, key)

    def work(self, key: str, state: str, **facts: Any) -> None:
        """A workflow, of whose nodes nothing is told, from its acceptance to its end."""
        self.note("client", Type.OK, "accept", key, ends=[state], **facts)
        self.note("client", Type.OK, "end", key, state=state)
        self.note("reader", Type.OK, "census", key, state=state)


def contested(at: float) -> list[HistoryEntry]:
    """An approval that one person granted and another one denied a moment later."""
    story = Story(at)
    story.work(CONTESTED, "completed", contested={"gate": "next"})
    for by, granted, type_ in (("ada", True, Type.OK), ("bob", False, Type.FAIL)):
        said = {"node": GATE, "by": by, "granted": granted}
        story.note("client", Type.INVOKE, "answer", f"{GATE}:{by}", **said)
        story.note("client", type_, "answer", f"{GATE}:{by}", **said)
    story.whole("agent-1", "execute", f"{CONTESTED}:next")
    for decision, by in (("asked", ""), ("granted", "ada")):
        story.note("reader", Type.OK, "decision", GATE, decision=decision, by=by)
    story.note("reader", Type.OK, "result", GATE, state="completed", fence=0)
    return story.entries


def talked(at: float) -> list[HistoryEntry]:
    """A thread of three messages, of which a listener hears the last one in a second loop."""
    story = Story(at)
    story.note("client", Type.INVOKE, "talk", THREAD, listener=LISTENER)
    story.note("client", Type.INVOKE, "listen", f"{THREAD}/1", thread=THREAD)
    for number, text in enumerate(("one", "two", "three"), 1):
        story.note("client", Type.INVOKE, "say", f"{THREAD}/{text}", thread=THREAD, text=text)
        story.note("client", Type.OK, "say", f"{THREAD}/{text}", number=number)
        loop = f"{THREAD}/{1 if number < 3 else 2}"
        story.note("client", Type.OK, "hear", loop, thread=THREAD, number=number, text=text)
        story.note("reader", Type.OK, "message", THREAD, number=number, text=text)
    story.note("client", Type.OK, "talk", THREAD)
    story.note("reader", Type.OK, "receipt", f"{THREAD}/{LISTENER}", number=3)
    return story.entries


def voted(at: float) -> list[HistoryEntry]:
    """A vote that two of three voters answered, with one mind."""
    story = Story(at)
    story.work(VOTE, "completed", ballots={"vote_1": "yes", "vote_2": "no", "vote_3": "yes"})
    for node, state in (("vote_1", "completed"), ("vote_2", "failed"), ("vote_3", "completed")):
        story.note("reader", Type.OK, "result", f"{VOTE}:{node}", state=state, fence=1)
    story.note("client", Type.OK, "verdict", VOTE, value="yes")
    return story.entries


def triggered(at: float) -> list[HistoryEntry]:
    """A trigger with two events, each of which started a workflow."""
    story = Story(at)
    story.note("client", Type.INVOKE, "trigger", TRIGGER)
    for number, run in enumerate(RUNS):
        story.whole("client", "event", f"event-{number}", trigger=TRIGGER)
        story.work(run, "completed", trigger=TRIGGER)
        story.whole("agent-1", "execute", f"{run}:triggered", after=[f"event-{number}"])
    story.note("client", Type.OK, "trigger", TRIGGER)
    return story.entries


def parented(at: float) -> list[HistoryEntry]:
    """A workflow whose node runs a child, and whose next node is given what the child made."""
    story = Story(at)
    story.work(PARENT, "completed", children={"sub": ["made", "last"]})
    story.work(CHILD, "completed", parent=f"{PARENT}:sub", nodes={"made": []})
    for version, key in enumerate((f"{CHILD}:made", f"{PARENT}:sub"), 1):
        story.whole("dispatcher-1", "state", key, state="completed", fence=1, attempt=1, version=version)
    story.note("reader", Type.OK, "effect", f"{CHILD}:made", token="its token")
    story.whole("agent-1", "execute", f"{PARENT}:last", after=["its token"])
    return story.entries


def rated(at: float) -> list[HistoryEntry]:
    """Executions of a capability with a rate, as many as its burst."""
    story = Story(at)
    for number in range(2):
        story.note("agent-1", Type.OK, "begin", RATED, task=f"task-{number}", per_second=1, burst=2)
    return story.entries


def streamed(at: float) -> list[HistoryEntry]:
    """A result in two parts, which began again after the first one."""
    story = Story(at)
    story.note("client", Type.INVOKE, "stream", STREAM, parts=2)
    story.note("client", Type.OK, "given", STREAM, part="first/0")
    story.note("client", Type.OK, "restarted", STREAM)
    for number in range(2):
        story.note("client", Type.OK, "given", STREAM, part=f"second/{number}")
    story.note("client", Type.OK, "stream", STREAM)
    return story.entries


def coordinated(at: float) -> list[HistoryEntry]:
    """All of that, and tasks of a key, from an instant on."""
    stories = (keyed, contested, talked, voted, triggered, parented, rated, streamed)
    return [entry for number, story in enumerate(stories) for entry in story(at + 5.0 * number)]
