"""The history of a chaos run, in JSON lines: every process appends to its own file, and a reader merges the files.

The form is Jepsen's: an operation begins (`invoke`) and ends `ok`, `fail` (it certainly did not happen) or `info`
(unknown). An operation without an end counts as ended `info`. The instants are the machine's monotonic clock, which
all of its processes share. A line is one write to an open file: it outlives `kill -9`, and costs a few microseconds.

=============  ===========  ===================  ==================================================================
``f``          written by   ``key``              ``val``
=============  ===========  ===================  ==================================================================
``accept``     client       work                 `nodes` (each with its predecessors; a direct task: none),
                                                 `joins` (of how many it needs fewer), `most` (attempts of a node,
                                                 or of the task), `ends` (the states that it is meant to end in),
                                                 `priority` of a direct task, `levels` of nodes, `priorities` of those
                                                 that are not held up on purpose, `few` (attempts, where fewer),
                                                 `policed` (the rule that decides about a node),
                                                 `contested` (approvals, and the node behind each), `ballots` (what
                                                 each voter is to say), `members` and `enough` (the parallel tasks
                                                 of a pattern, and how many of them count), `discards` (the nodes
                                                 that a restore discards, by the checkpoint),
                                                 `poison` (the capability of a task that harms its agents),
                                                 `calls` (whether a direct task calls the dependency),
                                                 `meant` (the states that a node is for), `inputs` (what stands in a
                                                 node's input: an item, or the node whose token it is)
``submit``     client       idempotency key      `run`, once it is known: the work that the key means
``pause`` ...  client       work                 it was requested; ``resume`` and ``cancel`` likewise
``end``        client       work                 `state`; `info`: no answer in time
``grant``      client       node                 an approval was answered
``answer``     client       any                  `node`, `by`, `granted`: a person answered an approval; `fail`: too
                                                 late
``talk``       client       thread               from its opening to its close; `listener`, a participant
``say``        agent        any                  `thread`, `text`, `number` once it is known; also by the client
``listen``     client       loop                 of a listener of a `thread`; `ok`: until the thread was closed
``hear``       client       loop                 `thread`, `number`, `text` that the listener was told
``trigger``    client       trigger              from its making to its removal
``event``      client       event                `trigger`; `ok`: the broker has confirmed it
``begin``      agent        capability           `task`, `per_second`, `burst`: an execution with a rate began
``stream``     client       task                 `parts`; `ok`: the reader had all of them
``given``      client       task                 `part` that the reader was given; ``restarted``: they begin again
``verdict``    client       work                 `value`, the result of a vote
``joined``     client       work                 `values`, the result of a pattern with `members`
``restore``    client       work                 `by`, `checkpoint`, `named` (the nodes that the plan names), `undone`
                                                 (those that it says are compensated); `fail`: it was refused
``terminate``  agent        task                 its handler ends its agent in an orderly way
``failed``     client       task                 `reason` of a task with `poison`
``saw``        agent        task                 `fence`, and what was in shared state: `trail`, `there`
``redrive``    client       node                 a rerun of an ended node was requested
``execute``    agent        task                 `agent`, `attempt`, `fence`, `priority`, `after` (what stood in the
                                                 input); `fail`: the handler failed on purpose
``go on``      agent        task                 the same, after it awaited a child
``look``       chaos        ``registry``         `running` and `at_work` (lives of agents), `listed` (by the
                                                 registry); `fail`: it did not answer
``effect``     reader       task                 `token`, what the effect was; from the agents' effect log
``claim``      dispatcher   node                 `shard`, `fence`, `publication`, `version`
``confirmed``  dispatcher   ``shard-N``          `number` up to which it records all publications as confirmed
``built``      dispatcher   ``shard-N``          `last` number before a broker that lost all, or came back
``state``      dispatcher   node                 `state`, `fence`, `attempt`, `agent`, `version`
``restored``   dispatcher   work                 `number`, `by`, `checkpoint`, `version`: it was restored
``lease``      dispatcher   ``shard-N``          `owner`, `epoch`, `version`: a shard changed hands
``evict``      dispatcher   process              it was evicted from the broker; in the simulation
``publish``    dispatcher   node                 `shard`, `fence`, `publication`
``ack``        dispatcher   node                 `fence`, `publication` of the result
``census``     reader       work                 `state`, at the end; None when it is unknown; `submitted`, the key
                                                 that the ledger has for it
``audit``      reader       ``ledger``           `rows` that were read, `wrong`: the contradictions
``decision``   reader       node                 `decision`, `by`, `rule`: an entry of the audit trail
``message``    reader       thread               `number`, `text`: a message that the ledger has
``restores``   reader       work                 `by`: who asked for each restore that the ledger has
``receipt``    reader       participant          `number` up to which it has read a thread
``result``     reader       node                 `state`, `fence`, `completed` (attempts), `by` (the fence whose value
                                                 was recorded) and `maker` (by which agent), `token` (of the
                                                 effect that it tells of)
``left``       chaos        queue                `messages` that are in it or in hand at the end
``stranger``   chaos        message              `what`, the kind that a stranger sent
``kill`` ...   chaos        victim               `kind`; ``stop``, ``wipe`` and ``cut`` likewise. They begin with the
                                                 hit, and end with the recovery
``trouble``    chaos        process              `life` of a process that ended by itself, for want of a server, and
                                                 the `reason`; ``restart`` and ``crash`` likewise, of an agent that a
                                                 task asked to end, and of an unexpected end
=============  ===========  ===================  ==================================================================

A writer's name is its post and the number of its restart, `agent-2#3`: a restarted process keeps the post and loses
its memory. *Work* is a workflow's id or a direct task's. A *node* is ``workflow:node``,
which is its task's id and the key of its effects. The writes of a transaction are one line, ``commit`` with
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
HISTORY_VARIABLE = "CHAOS_HISTORY"
"""The environment variable with the folder in which the processes of a chaos run write their histories."""
NAME_VARIABLE = "CHAOS_NAME"
"""The environment variable with the name under which a process writes its history."""
COMMIT = "commit"
UNENDED = float("inf")


class Type(StrEnum):
    """The kind of a history entry: the beginning of an operation, or one of its three outcomes."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    """The operation ended, and certainly did not happen."""
    INFO = "info"
    """The operation ended, and whether it happened is unknown."""


def post_of(proc: str) -> str:
    """Return the part of a process's name that restarts keep, which ends before any `#`: `agent-2` for `agent-2#3`."""
    return proc.partition("#")[0]


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A line of a history: the beginning or the end of one operation in one process."""

    t: float
    """The time of the entry in seconds, on the monotonic clock of the machine."""
    proc: str
    type: Type
    f: str
    key: str
    val: Mapping[str, Any] = field(default_factory=dict)


class Scribe:
    """The writer of one history file; a line is in the file when `note` returns, even after `kill -9`."""

    def __init__(self, file: Path, proc: str, *, now: Callable[[], float] = time.monotonic) -> None:
        """Open the history file for appending, and create its folder; several processes may share a file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(file, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)
        self._proc = proc
        self._now = now

    def note(self, type_: Type, f: str, key: str = "", **val: Any) -> None:
        """Append one entry to the history file; callable from any thread."""
        line = {"t": round(self._now(), 6), "proc": self._proc, "type": type_, "f": f, "key": key, "val": val}
        os.write(self._descriptor, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Close the history file; a later `note` fails."""
        os.close(self._descriptor)


class Notebook:
    """A history in memory, for simulations, which run in one process that no fault kills."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.entries: list[HistoryEntry] = []
        self._now = now

    def of(self, proc: str) -> Callable[..., None]:
        """Return the function that records the entries of one process."""

        def note(type_: Type, f: str, key: str = "", **val: Any) -> None:
            self.entries.append(HistoryEntry(self._now(), proc, type_, f, key, val))

        return note


Note = Callable[..., None]
"""The type of a function that writes one history entry, such as `Scribe.note`."""


def silent(type_: Type, f: str, key: str = "", **val: Any) -> None:
    """Discard a history entry; the default for a dispatcher without a history."""


def read_histories(folder: Path) -> list[HistoryEntry]:
    """Return the entries of a folder's history files by time; split transactions into rows, skip malformed lines."""
    files = sorted(folder.glob(f"*{SUFFIX}"))
    return merged(entry for file in files for entry in _entries(file))


def merged(entries: Iterable[HistoryEntry]) -> list[HistoryEntry]:
    """Return history entries in order of time, each transaction's line split into its rows."""
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
