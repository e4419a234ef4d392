"""Histories of the further parts of a load: a contested approval, a thread, a vote, a trigger, and others."""

from __future__ import annotations

from itertools import count
from typing import Any

from chaos.history import HistoryEntry, Type
from tests.unit.chaos.keyed import keyed

CONTESTED, THREAD, VOTE = "contested", "thread", "voted"
GATE = f"{CONTESTED}:gate"
LISTENER = "bob"
TRIGGER, RUNS = "trigger", ("run-of-1", "run-of-2")
PARENT, CHILD = "parent", "its-child"
RATED, STREAM = "chaos.rated", "streamed"
RESTORED, ASKED_BY = "restored", "its-restore"
QUORUM = "quorum"


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


def restored(at: float) -> list[HistoryEntry]:
    """A workflow that was restored to its first node after its end: two nodes were undone, and three ran again."""
    story, versions = Story(at), count(1)
    steps = {"mark": [], "left": ["mark"], "join": ["left"], "last": ["join"]}
    nodes = {**steps, "left.compensate": ["left"], "last.compensate": ["last"]}
    facts = {"nodes": nodes, "most": 5, "discards": {"mark": ["left", "join", "last"]}}
    story.note("client", Type.OK, "accept", RESTORED, ends=["completed"], **facts)

    def ran(node: str, fence: int, *given: str, **saw: Any) -> None:
        key, version = f"{RESTORED}:{node}", next(versions)
        number = {"shard": 30, "publication": version, "row": True}
        story.whole("dispatcher-1", "claim", key, fence=fence, version=version, **number)
        story.note("agent-1", Type.INVOKE, "execute", key, fence=fence, attempt=1, after=[*given])
        if saw:
            story.note("agent-1", Type.OK, "saw", key, fence=fence, **saw)
        story.note("agent-1", Type.OK, "execute", key, fence=fence)
        end = {"state": "completed", "fence": fence, "attempt": 1, "version": next(versions)}
        story.whole("dispatcher-1", "state", key, **end)

    def all_ran(fence: int) -> None:
        mark, left, join = made("mark", 1), made("left", fence), made("join", fence)
        ran("left", fence, mark, trail={"mark": mark}, there=mark)
        ran("join", fence, left, trail={"mark": mark, "left": left}, there=mark)
        ran("last", fence, join, trail={"mark": mark, "left": left, "join": join}, there=None)

    ran("mark", 1, trail={}, there=None)
    all_ran(1)
    asked = {"by": ASKED_BY, "checkpoint": "mark", "named": ["left", "join", "last"]}
    story.note("client", Type.INVOKE, "restore", RESTORED, **asked, undone=["left", "last"])
    row = {"number": 1, "by": ASKED_BY, "checkpoint": "mark", "version": next(versions)}
    story.whole("dispatcher-1", "restored", RESTORED, **row)
    story.note("client", Type.OK, "restore", RESTORED, by=ASKED_BY)
    ran("last.compensate", 1, made("last", 1))
    ran("left.compensate", 1, made("left", 1))
    all_ran(3)
    story.note("client", Type.OK, "end", RESTORED, state="completed")
    story.note("reader", Type.OK, "census", RESTORED, state="completed")
    story.note("reader", Type.OK, "restores", RESTORED, by=[ASKED_BY])
    for node in steps:
        fence = 1 if node == "mark" else 3
        told = {"state": "completed", "fence": fence, "by": fence, "maker": "agent-1", "token": None}
        story.note("reader", Type.OK, "result", f"{RESTORED}:{node}", **told)
    return story.entries


def joined(at: float) -> list[HistoryEntry]:
    """A quorum of two of three members: the first and the last one completed, and the other one was canceled."""
    story = Story(at)
    members = [f"member_{number}" for number in (1, 2, 3)]
    story.work(QUORUM, "completed", members=members, enough=2)
    for version, node in enumerate((*members, "result"), 1):
        claim = {"shard": 31, "fence": 1, "publication": version, "version": version, "row": True}
        story.whole("dispatcher-1", "claim", f"{QUORUM}:{node}", **claim)
    for node, state in (("member_1", "completed"), ("member_2", "canceled"), ("member_3", "completed")):
        if state == "completed":
            story.whole("agent-1", "execute", f"{QUORUM}:{node}", fence=1)
        story.note("reader", Type.OK, "result", f"{QUORUM}:{node}", state=state, fence=1)
    values = [f"{QUORUM}:{node}@1" for node in ("member_1", "member_3")]
    story.note("client", Type.OK, "joined", QUORUM, values=values)
    return story.entries


def made(node: str, fence: int) -> str:
    """What the execution of a node of the restored workflow makes."""
    return f"{RESTORED}:{node}@{fence}"


def coordinated(at: float) -> list[HistoryEntry]:
    """All of that, and tasks of a key, from an instant on."""
    stories = (keyed, contested, talked, voted, triggered, parented, rated, streamed, restored, joined)
    return [entry for number, story in enumerate(stories) for entry in story(at + 5.0 * number)]
