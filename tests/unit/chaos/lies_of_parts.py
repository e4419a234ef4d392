"""Lies about what the further parts of a load do, each with the invariant that finds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from chaos.history import HistoryEntry, Type
from tests.unit.chaos.collaborated import (
    ASKED_BY,
    CHILD,
    CONTESTED,
    GATE,
    PARENT,
    QUORUM,
    RATED,
    RESTORED,
    RUNS,
    STREAM,
    THREAD,
    VOTE,
    made,
)
from tests.unit.chaos.histories import Lie, altered, appended, dropped, unended
from tests.unit.chaos.keyed import keyed_beside


def _without(f: str, **val: Any) -> Lie:
    """Leave out the entries with these facts."""
    return lambda entries, node, work: [one for one in entries if one.f != f or {**one.val, **val} != dict(one.val)]


def _both_counted(entries: list[HistoryEntry], node: str, work: str) -> list[HistoryEntry]:
    return [replace(one, type=Type.OK) if (one.f, one.type) == ("answer", Type.FAIL) else one for one in entries]


def _exchanged(entries: list[HistoryEntry], node: str, work: str) -> list[HistoryEntry]:
    """The first two messages in the other order, in all that is known but when they were said."""
    other = {1: 2, 2: 1}

    def exchange(one: HistoryEntry) -> HistoryEntry:
        if one.f not in ("say", "message") or one.val.get("number") not in other:
            return one
        return replace(one, val={**one.val, "number": other[one.val["number"]]})

    return [exchange(one) for one in entries]


def _read_unheard(entries: list[HistoryEntry], node: str, work: str) -> list[HistoryEntry]:
    """A thread that stays open, and whose last message is noted as read by one who was not told."""
    return [one for one in entries if (one.f, one.val.get("text")) != ("hear", "three")]


def _told(*nodes: str) -> Lie:
    return altered("joined", QUORUM, values=[f"{QUORUM}:{node}@1" for node in nodes])


def _refused(entries: list[HistoryEntry], node: str, work: str) -> list[HistoryEntry]:
    return [replace(one, type=Type.FAIL) if (one.f, one.type) == ("restore", Type.OK) else one for one in entries]


LIES_OF_PARTS: Mapping[str, tuple[str, Lie]] = MappingProxyType(
    {
        "two tasks of a key ran at once": ("keys exclude", lambda entries, node, work: keyed_beside(entries)),
        "an approval was decided twice": ("decided once", appended("decision", GATE, decision="denied", by="bob")),
        "an approval was never decided": ("decided once", _without("decision", decision="granted")),
        "two people were told that their answer counts": ("decided once", _both_counted),
        "an approval did not end as it was decided": ("decided once", altered("result", GATE, state="rejected")),
        "a node ran before its approval ended": ("decided once", dropped("result", f"{CONTESTED}:gate")),
        "a message is in its thread twice": ("threads kept", appended("message", THREAD, number=4, text="two")),
        "a message is lost": ("threads kept", _without("message", text="two")),
        "a message is not what was said": ("threads kept", altered("say", f"{THREAD}/two", text="another")),
        "a thread has a message that nobody said": ("threads kept", dropped("say", f"{THREAD}/one")),
        "messages are not in their order": ("threads kept", _exchanged),
        "a listener was not told of a message": ("threads kept", _without("hear", text="two")),
        "a listener that came back was not told what it had missed": ("threads kept", dropped("hear", f"{THREAD}/2")),
        "a message is noted as read, and was not told": ("threads kept", _read_unheard),
        "a thread was never closed": ("threads kept", unended("talk")),
        "a vote is what fewer said": ("majority counts", altered("verdict", VOTE, value="no")),
        "a vote has no majority": (
            "majority counts",
            altered("accept", VOTE, ballots={"vote_1": "yes", "vote_2": "yes", "vote_3": "no"}),
        ),
        "a vote failed although most were of one mind": ("majority counts", altered("census", VOTE, state="failed")),
        "an event started two runs": (
            "one run an event",
            altered("execute", f"{RUNS[1]}:triggered", after=["event-0"]),
        ),
        "an event started nothing": ("one run an event", dropped("execute", f"{RUNS[1]}:triggered")),
        "an event that nobody published started a workflow": ("one run an event", dropped("event", "event-1")),
        "a trigger was never removed": ("one run an event", unended("trigger")),
        "a node ran two children": ("child ends first", appended("accept", "other", parent=f"{PARENT}:sub", nodes={})),
        "a child outlives its node": (
            "child ends first",
            appended("state", f"{CHILD}:made", state="completed", fence=1, attempt=1, version=10**12),
        ),
        "a node got another result than its child's": (
            "child ends first",
            altered("execute", f"{PARENT}:last", after=["another token"]),
        ),
        "more executions began than their rate allows": ("rate kept", altered("begin", RATED, per_second=0, burst=0)),
        "a reader was not told that the parts began again": ("parts in order", dropped("restarted", STREAM)),
        "a part was left out": ("parts in order", _without("given", part="second/0")),
        "a part came twice": ("parts in order", appended("given", STREAM, part="second/1")),
        "a pattern counts a result twice": ("patterns join", _told("member_1", "member_1")),
        "a pattern counts one that was canceled": ("patterns join", _told("member_1", "member_2")),
        "a pattern counts fewer than are enough": ("patterns join", _told("member_3")),
        "a pattern counts what no execution made": ("patterns join", dropped("execute", f"{QUORUM}:member_3")),
        "a member began after enough others": ("patterns join", altered("claim", f"{QUORUM}:member_2", version=10**6)),
        "a restore was not carried out": ("restored whole", dropped("restores", RESTORED)),
        "a restore was carried out twice": ("restored whole", altered("restores", RESTORED, by=[ASKED_BY, ASKED_BY])),
        "a restore that was refused was carried out": ("restored whole", _refused),
        "a restore that nobody asked for was carried out": ("restored whole", dropped("restore", RESTORED)),
        "a restore did not undo what it said": ("restored whole", dropped("claim", f"{RESTORED}:left.compensate")),
        "a restore undid more than it said": (
            "restored whole",
            altered("restore", RESTORED, by=ASKED_BY, checkpoint="mark", undone=["left"]),
        ),
        "a restore discarded the unnamed": (
            "restored whole",
            altered("restore", RESTORED, by=ASKED_BY, checkpoint="mark", named=["left", "last"]),
        ),
        "a restore undid first things first": (
            "restored whole",
            altered("claim", f"{RESTORED}:last.compensate", version=13),
        ),
        "a discarded node ran too early": (
            "restored whole",
            altered("claim", f"{RESTORED}:left.compensate", version=10**6),
        ),
        "a result of a discarded run counts": ("restored whole", altered("result", f"{RESTORED}:left", by=1)),
        "a node got what a discarded run made": (
            "restored whole",
            altered("execute", f"{RESTORED}:join", after=[made("left", 1)]),
        ),
        "state has what a discarded run wrote": (
            "restored whole",
            altered("saw", f"{RESTORED}:left", trail={"mark": made("mark", 1), "left": made("left", 1)}),
        ),
        "state lacks what a checkpoint had": ("restored whole", altered("saw", f"{RESTORED}:left", trail={})),
        "a removed key was not brought back": ("restored whole", altered("saw", f"{RESTORED}:left", there=None)),
        "a node before the checkpoint ran again": (
            "restored whole",
            appended("claim", f"{RESTORED}:mark", fence=5, shard=30, publication=10**6, version=10**6, row=True),
        ),
        "a stream ended early": ("parts in order", _without("given", part="second/1")),
    }
)
