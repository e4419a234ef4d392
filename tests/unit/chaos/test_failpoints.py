"""Failpoints and histories: what strikes a process of a run, and what its processes wrote down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from chaos import dispatcher
from chaos.checks.history_index import HistoryIndex, operations
from chaos.dispatcher import open_note
from chaos.failpoints import Act, Failpoint, FailpointReached, Failpoints, read_orders
from chaos.history import (
    HISTORY_VARIABLE,
    NAME_VARIABLE,
    SUFFIX,
    UNENDED,
    HistoryEntry,
    Notebook,
    Scribe,
    Type,
    merged,
    read_histories,
    silent,
)
from chaos.recorder import POINTS, RecordedBroker, RecordedDatabase, RecordedGraph, Rows
from chaos.simulated_task_graph import MemoryTaskGraph
from coditect.errors import SetupError
from coditect.model.capability import Priority
from coditect.workflow.states import TaskState
from dispatcher.ledger import versions
from dispatcher.ledger.keyspace import RESTORES, STATUSES
from dispatcher.ledger.rows import NodeRecord
from dispatcher.program import Wrap
from dispatcher.taskgraph.port import Change, Job, JobState, Proposal

STRUCK_CHILD = """
from chaos.failpoints import Failpoints, read_orders
failpoints = Failpoints(read_orders(["a.b:{act}@2"], {{"a.b"}}))
for number in range(3):
    print(number, flush=True)
    failpoints.reached("a.b")
"""

THREAD = """
import os, threading, time
from chaos.failpoints import Act, Failpoint, strike
def work():
    time.sleep(0.05)  # the other thread has nothing more to do than to take signals
    strike(Failpoint("a.b", Act.STOP))
    os.write(1, b"still here")
threading.Thread(target=work).start()
"""


def test_orders_say_where_what_and_which_time_at_points_that_there_are() -> None:
    orders = read_orders(["commit.before:kill@3", "ack.after:stop"], POINTS)

    assert orders == (Failpoint("commit.before", Act.KILL, 3), Failpoint("ack.after", Act.STOP, 1))
    assert read_orders([], POINTS) == ()

    with pytest.raises(SetupError, match="no such failpoint") as refused:
        read_orders(["commit.over:kill"], POINTS)

    assert refused.value.facts["known"] == tuple(sorted(POINTS))


NO_ORDERS = ("", "commit.before", "commit.before:explode", "commit.before:kill@0", "commit before:kill", ":kill")


@pytest.mark.parametrize("text", NO_ORDERS)
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match="no order") as refused:
        read_orders([text], POINTS)

    assert refused.value.facts["given"] == text


def test_order_is_carried_out_at_its_time_and_only_then() -> None:
    met: list[str | Failpoint] = []
    second, fourth = Failpoint("a", Act.KILL, 2), Failpoint("a", Act.STOP, 4)
    failpoints = Failpoints([second, fourth], strike=met.append)

    for _ in range(5):
        failpoints.reached("a")
        failpoints.reached("b")
        met.append("passed")

    assert met == ["passed", second, "passed", "passed", fourth, "passed", "passed"]

    raising = Failpoints([Failpoint("a", Act.RAISE)])

    with pytest.raises(FailpointReached):
        raising.reached("a")
    raising.reached("a")

    idle = Failpoints()

    idle.reached("a")

    assert not idle
    assert idle._counts == {}


def test_killed_at_a_failpoint_is_gone_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRUCK_CHILD.format(act="kill")], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "0\n1\n")


def test_stopped_at_a_failpoint_goes_on_when_it_is_continued() -> None:
    child = subprocess.Popen([sys.executable, "-c", STRUCK_CHILD.format(act="stop")], stdout=subprocess.PIPE, text=True)
    try:
        stopped = when_stopped(child)
        os.kill(child.pid, signal.SIGCONT)
        said, _ = child.communicate(timeout=100)
    finally:
        child.kill()

    assert (stopped, child.returncode, said) == (psutil.STATUS_STOPPED, 0, "0\n1\n2\n")


@pytest.mark.parametrize("time_", range(3))
def test_thread_that_reaches_a_stop_does_nothing_more(time_: int) -> None:
    child = subprocess.Popen([sys.executable, "-c", THREAD], stdout=subprocess.PIPE)
    try:
        stopped = when_stopped(child)
    finally:
        child.kill()
        said, _ = child.communicate(timeout=100)

    assert (stopped, said) == (psutil.STATUS_STOPPED, b"")


def when_stopped(child: subprocess.Popen[Any]) -> str:
    deadline = time.monotonic() + 60
    while (status := psutil.Process(child.pid).status()) != psutil.STATUS_STOPPED and time.monotonic() < deadline:
        time.sleep(0.01)
    return str(status)


async def test_dispatcher_of_a_run_works_on_ports_that_record_and_strike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wraps: list[Wrap] = []
    monkeypatch.setattr(dispatcher, "run_dispatcher", lambda *, wrap: wraps.append(wrap))
    monkeypatch.setenv(HISTORY_VARIABLE, str(tmp_path))
    monkeypatch.setenv(NAME_VARIABLE, "dispatcher-2")
    port: Any = object()

    dispatcher.main(["tell.before:raise"])
    broker, database, graph = wraps[0](port, port, port)

    assert (type(broker), type(database)) == (RecordedBroker, RecordedDatabase)
    with pytest.raises(FailpointReached):
        await graph.tell([])


def test_history_is_written_under_the_name_of_the_process_and_its_life(tmp_path: Path) -> None:
    note = open_note({HISTORY_VARIABLE: str(tmp_path), NAME_VARIABLE: "dispatcher-2"})

    note(Type.OK, "effect", "it")

    assert [(one.proc, one.key) for one in read_histories(tmp_path)] == [(f"dispatcher-2#{os.getpid()}", "it")]
    assert open_note({}) is silent


async def test_watched_graph_tells_what_the_graph_tells_and_adopts() -> None:
    points: list[str] = []
    graph = RecordedGraph(MemoryTaskGraph(), reached=points.append)
    job = Job("flow", "node", 0, Priority.P1, "work", (), JobState.QUEUED)
    gone = Change("flow", "gone", 0, Priority.P1, JobState.FINISHED)

    assert await graph.create([job]) == []
    assert await graph.create([job]) == [job]
    await graph.tell([gone])
    assert points == ["tell.before", "tell.after"] * 3

    adopted: list[str] = []
    adopting = RecordedGraph(MemoryTaskGraph(), reached=adopted.append)
    await adopting.create([Job("flow", "node", 0, Priority.P1, "work", (), JobState.QUEUED)])
    adopted.clear()

    assert await adopting.adopt([], {"work": 1}) == []
    assert await adopting.adopt([0], {}) == []
    assert adopted == []
    assert await adopting.adopt([0], {"work": 1}) == [Proposal("flow", "node", "work")]
    assert await adopting.adopt([0], {"work": 1}) == []
    assert adopted == ["adopt.before", "adopt.after", "adopt.before"]


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
