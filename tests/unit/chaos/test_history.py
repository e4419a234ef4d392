from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from chaos.checks.history_index import HistoryIndex, operations
from chaos.history import SUFFIX, UNENDED, HistoryEntry, Notebook, Scribe, Type, merged, read_histories
from chaos.recorder import Rows
from coditect.workflow.states import TaskState
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import RESTORES, STATUSES
from dispatcher.ledger.rows import NodeRecord

CHILD = """
import sys
from pathlib import Path
from chaos.history import Scribe, Type
scribe = Scribe(Path(sys.argv[1]), "child")
for number in range(10_000):
    scribe.note(Type.OK, "effect", str(number))
    print(number, flush=True)
"""


def test_histories_of_all_processes_are_merged_in_order_of_time(tmp_path: Path) -> None:
    times = iter([3.0, 1.0, 2.0])
    for name in ("one", "two", "three"):
        scribe = Scribe(tmp_path / "run" / f"{name}{SUFFIX}", name, now=lambda: next(times))
        scribe.note(Type.INVOKE, "execute", f"of {name}", attempt=1)
        scribe.close()

    entries = read_histories(tmp_path / "run")

    assert [(one.t, one.proc) for one in entries] == [(1.0, "two"), (2.0, "three"), (3.0, "one")]
    assert entries[0] == HistoryEntry(1.0, "two", Type.INVOKE, "execute", "of two", {"attempt": 1})


def test_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    scribe = Scribe(tmp_path / f"one{SUFFIX}", "one")
    scribe.note(Type.OK, "effect", "whole")
    scribe.close()
    with (tmp_path / f"one{SUFFIX}").open("ab") as file:
        file.write(b'{"t":1.0,"proc":"one","ty')

    assert [one.key for one in read_histories(tmp_path)] == ["whole"]


def test_what_was_noted_outlives_a_kill(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / f"c{SUFFIX}")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    said = [int(child.stdout.readline()) for _ in range(50)]
    os.kill(child.pid, signal.SIGKILL)
    said += [int(line) for line in child.communicate()[0].split()]

    assert {one.key for one in read_histories(tmp_path)} >= {str(number) for number in said}


def test_line_of_a_transaction_is_read_as_its_rows() -> None:
    rows = [["claim", "w:a", {"fence": 1}], ["state", "w:a", {"state": "published"}]]
    entries = [
        HistoryEntry(1.0, "d", Type.INVOKE, "commit", "7", {"rows": rows}),
        HistoryEntry(2.0, "d", Type.OK, "commit", "7"),
        HistoryEntry(3.0, "d", Type.INVOKE, "commit", "8", {"rows": rows[:1]}),
    ]

    done, open_ = operations(merged(entries)), operations(merged(entries[2:]))

    assert [(one.f, one.key, one.begun, one.ended, one.outcome) for one in done[:2]] == [
        ("claim", "w:a", 1.0, 2.0, Type.OK),
        ("state", "w:a", 1.0, 2.0, Type.OK),
    ]
    assert [(one.happened, one.possible, one.open_at(9.0)) for one in open_] == [(False, True, True)]


def test_end_belongs_to_the_newest_beginning_of_its_process_or_to_its_fence() -> None:
    now = [0.0]
    notebook = Notebook(lambda: now[0])
    one, other = notebook.of("one"), notebook.of("other")
    begins, fails = Type.INVOKE, Type.FAIL
    for at, note, type_ in ((1.0, one, begins), (2.0, other, begins), (3.0, one, begins), (4.0, one, fails)):
        now[0] = at
        note(type_, "execute", "task", attempt=at)

    died, elsewhere, failed = HistoryIndex(notebook.entries).about("execute", "task")

    assert (died.outcome, died.possible, elsewhere.proc, elsewhere.ended) == (Type.INFO, True, "other", UNENDED)
    assert (failed.begun, failed.ended, failed.possible, failed.val) == (3.0, 4.0, False, {"attempt": 4.0})

    now = [0.0]
    notebook = Notebook(lambda: now[0])
    note = notebook.of("one")
    for at, type_, fence in ((1.0, Type.INVOKE, 5), (2.0, Type.INVOKE, 6), (3.0, Type.OK, 5)):
        now[0] = at
        note(type_, "execute", "w:a", fence=fence)

    first, second = HistoryIndex(notebook.entries).about("execute", "w:a")

    assert (first.val["fence"], first.ended, first.outcome) == (5, 3.0, Type.OK)
    assert (second.val["fence"], second.ended) == (6, UNENDED)


def test_discarded_nodes_are_noted_with_their_fence_and_restores_with_who_asked() -> None:
    rows = Rows()
    for name, fence in (("discarded", 3), ("new", 0)):
        rows.written(STATUSES.pack(("w", name)), NodeRecord(TaskState.BLOCKED, fence=fence).pack())

    assert [(f, key, facts["fence"]) for f, key, facts in rows.told(1)] == [("state", "w:discarded", 3)]

    rows = Rows()
    rows.written(RESTORES.pack(("w", 1)), versions.RESTORE.pack((1_000, "ada", "hotel")))

    assert rows.told(7) == [("restored", "w", {"number": 1, "by": "ada", "checkpoint": "hotel", "version": 7})]
