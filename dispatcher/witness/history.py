"""What happened, one JSON line each: every process appends to a file of its own, and a reader merges them afterwards.

The form is Jepsen's: an operation begins (`invoke`) and ends `ok`, `fail` (it certainly did not happen) or `info`
(nobody knows). One that has no end is as one that ended `info`. The instants are the machine's monotonic clock, which
all of its processes share. A line is one write to an open file: it outlives `kill -9`, and costs a few microseconds.

=============  ===========  ===================  ==================================================================
``f``          written by   ``key``              ``val``
=============  ===========  ===================  ==================================================================
``accept``     client       work                 `nodes` (each with its predecessors; a direct task: none),
                                                 `joins` (of how many it needs fewer), `most` (attempts of a node,
                                                 or of the task), `ends` (the states that it is meant to end in),
                                                 `priority` of a direct task, `levels` of nodes, `priorities` of those
                                                 that are not held up on purpose, `few` (attempts, where fewer),
                                                 `meant` (the states that a node is for), `inputs` (what stands in a
                                                 node's input: an item, or the node whose token it is)
``submit``     client       idempotency key      `run`, once it is known: the work that the key means
``pause`` ...  client       work                 it was asked for; ``resume`` and ``cancel`` likewise
``end``        client       work                 `state`; `info`: no answer in time
``grant``      client       node                 an approval was answered
``redrive``    client       node                 an ended node was asked to run again
``execute``    agent        task                 `agent`, `attempt`, `fence`, `priority`, `after` (what stood in the
                                                 input); `fail`: the handler failed on purpose
``look``       chaos        ``registry``         `running` and `at_work` (lives of agents), `listed` (by the
                                                 registry); `fail`: it did not answer
``effect``     reader       task                 `token`, what the effect was; from the agents' effect log
``claim``      dispatcher   node                 `shard`, `fence`, `publication`, `version`
``state``      dispatcher   node                 `state`, `fence`, `attempt`, `agent`, `version`
``lease``      dispatcher   ``shard-N``          `owner`, `epoch`, `version`: a shard changed hands
``publish``    dispatcher   node                 `shard`, `fence`, `publication`
``ack``        dispatcher   node                 `fence`, `publication` of the result
``census``     reader       work                 `state`, at the end; None when nobody knows it; `submitted`, the key
                                                 that the ledger has for it
``audit``      reader       ``ledger``           `rows` that were read, `wrong`: what does not agree
``result``     reader       node                 `state`, `fence`, `completed` (attempts), `by` (the fence whose value
                                                 was recorded) and `maker` (by which agent), `token` (of the
                                                 effect that it tells of)
``left``       chaos        queue                `messages` that are in it at the end, or in somebody's hand
``stranger``   chaos        message              `what` a stranger sent
``kill`` ...   chaos        who was hit          `kind`; ``stop``, ``wipe``, ``restart`` and ``cut`` likewise. They
                                                 begin when it is hit, and end when it is itself again
=============  ===========  ===================  ==================================================================

Who writes is called after its post, `agent-2`, and after the life that it has there, `agent-2#3`: whoever is started
anew takes the post and not the memory. *Work* is a workflow's id or a direct task's. A *node* is ``workflow:node``,
which is its task's id and the key of its effects. What a transaction did is written as one line, ``commit`` with
`rows`, and read as one entry for each.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

SUFFIX = ".history.jsonl"
HISTORY_VARIABLE = "CODITECT_HISTORY"
"""The folder in which the processes of a run write their histories."""
NAME_VARIABLE = "CODITECT_CHAOS_NAME"
"""What a process of a run is called, whichever process that is."""
COMMIT = "commit"
UNENDED = float("inf")


class Type(StrEnum):
    """Whether an operation begins or how it ended."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    """It certainly did not happen."""
    INFO = "info"
    """Nobody knows."""


def post_of(proc: str) -> str:
    """The post of a process, whichever life it is."""
    return proc.partition("#")[0]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One line of a history."""

    t: float
    """Seconds; comparable within one machine's boot."""
    proc: str
    type: Type
    f: str
    key: str
    val: Mapping[str, Any] = field(default_factory=dict)


class Scribe:
    """Appends to one file. Whatever it was given is in the file when `note` returns, also after `kill -9`."""

    def __init__(self, file: Path, proc: str, *, now: Callable[[], float] = time.monotonic) -> None:
        """Opens the file, and makes its folder. Several processes may share a file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        self._proc = proc
        self._now = now

    def note(self, type_: Type, f: str, key: str = "", **val: Any) -> None:
        """One line. From any thread."""
        line = {"t": round(self._now(), 6), "proc": self._proc, "type": type_, "f": f, "key": key, "val": val}
        os.write(self._descriptor, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)


class Notebook:
    """A scribe that keeps its lines in memory: for simulations, which have no processes to lose."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.entries: list[HistoryEntry] = []
        self._now = now

    def of(self, proc: str) -> Callable[..., None]:
        """The `note` of one process."""

        def note(type_: Type, f: str, key: str = "", **val: Any) -> None:
            self.entries.append(HistoryEntry(self._now(), proc, type_, f, key, val))

        return note


Note = Callable[..., None]
"""`Scribe.note`, or what stands in for it."""


def silent(type_: Type, f: str, key: str = "", **val: Any) -> None:
    """Notes nothing."""


def read_histories(folder: Path) -> list[HistoryEntry]:
    """All that the processes wrote into this folder, in order of time; a line that was cut short is left out."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    return merged(entry for file in files for entry in _entries(file))


def merged(entries: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    """In order of time, each transaction's line taken apart into its rows."""
    ordered = sorted(entries, key=lambda entry: entry.t)
    return list(_unpacked(ordered))


def _entries(file: Path) -> Iterator[HistoryEntry]:
    with file.open("rb") as lines:
        for line in lines:
            try:
                read = json.loads(line)
                yield HistoryEntry(read["t"], read["proc"], Type(read["type"]), read["f"], read["key"], read["val"])
            except (ValueError, KeyError, TypeError):
                continue  # killed while it wrote


def _unpacked(entries: Iterable[HistoryEntry]) -> Iterator[HistoryEntry]:
    open_: dict[tuple[str, str], HistoryEntry] = {}
    for entry in entries:
        if entry.f != COMMIT:
            yield entry
            continue
        if entry.type is Type.INVOKE:
            open_[entry.proc, entry.key] = entry
            rows = entry.val["rows"]
        else:
            begun = open_.pop((entry.proc, entry.key), None)
            rows = begun.val["rows"] if begun else ()
        for f, key, val in rows:
            yield HistoryEntry(entry.t, entry.proc, entry.type, f, key, val)
