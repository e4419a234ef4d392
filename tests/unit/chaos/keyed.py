"""Histories of tasks of one key."""

from __future__ import annotations

from chaos.history import HistoryEntry, Type

KEY = {"alone": "key-0"}


def ran(task: str, agent: str, begun: float, ended: float) -> list[HistoryEntry]:
    """A task of the key that an agent executes to its end."""
    return [
        HistoryEntry(begun, agent, Type.INVOKE, "execute", task, KEY),
        HistoryEntry(ended, agent, Type.OK, "execute", task, KEY),
    ]


def keyed(at: float) -> list[HistoryEntry]:
    """Two tasks of one key, of which the second begins when the first has ended."""
    return [*ran("keyed-1", "agent-9", at, at + 1.0), *ran("keyed-2", "agent-9", at + 1.1, at + 2.0)]


def keyed_beside(entries: list[HistoryEntry]) -> list[HistoryEntry]:
    """The same, with a third task that another agent executes beside the first."""
    (first, *_) = (one for one in entries if one.key == "keyed-1")
    beside = ran("keyed-3", "agent-8", first.t + 0.5, first.t + 0.6)
    return sorted([*entries, *beside], key=lambda one: one.t)
