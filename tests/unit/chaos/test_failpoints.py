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

from coditect.aio.failpoints import Act, Failpoint, FailpointReached, Failpoints, read_orders
from coditect.errors import SetupError
from coditect.model.capability import Priority
from dispatcher.recorder.history import Type, read_histories
from dispatcher.recorder.ports import POINTS, RecordedGraph
from dispatcher.recorder.watch import read_watch
from dispatcher.taskgraph.memory import MemoryTaskGraph
from dispatcher.taskgraph.port import Change, Job, JobState, Proposal

CHILD = """
from coditect.aio.failpoints import Failpoints, read_orders
failpoints = Failpoints(read_orders("a.b:{act}@2", {{"a.b"}}))
for number in range(3):
    print(number, flush=True)
    failpoints.reached("a.b")
"""

THREAD = """
import os, threading, time
from coditect.aio.failpoints import Act, Failpoint, strike
def work():
    time.sleep(0.05)  # the other thread has nothing more to do than to take signals
    strike(Failpoint("a.b", Act.STOP))
    os.write(1, b"still here")
threading.Thread(target=work).start()
"""


def test_orders_say_where_what_and_which_time() -> None:
    orders = read_orders(" commit.before:kill@3, ack.after:stop,", POINTS)

    assert orders == (Failpoint("commit.before", Act.KILL, 3), Failpoint("ack.after", Act.STOP, 1))
    assert read_orders("", POINTS) == ()


NO_ORDERS = ("commit.before", "commit.before:explode", "commit.before:kill@0", "commit before:kill", ":kill")


@pytest.mark.parametrize("text", NO_ORDERS)
def test_what_is_no_order_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match="no order") as refused:
        read_orders(text, POINTS)

    assert refused.value.facts["given"] == text


def test_unknown_point_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SetupError, match="no such failpoint") as refused:
        read_orders("commit.over:kill", POINTS)

    assert refused.value.facts["known"] == tuple(sorted(POINTS))


def test_order_is_carried_out_at_its_time_and_only_then() -> None:
    met: list[str | Failpoint] = []
    second, fourth = Failpoint("a", Act.KILL, 2), Failpoint("a", Act.STOP, 4)
    failpoints = Failpoints([second, fourth], strike=met.append)

    for _ in range(5):
        failpoints.reached("a")
        failpoints.reached("b")
        met.append("passed")

    assert met == ["passed", second, "passed", "passed", fourth, "passed", "passed"]


def test_order_to_raise_raises() -> None:
    failpoints = Failpoints([Failpoint("a", Act.RAISE)])

    with pytest.raises(FailpointReached):
        failpoints.reached("a")
    failpoints.reached("a")


def test_without_orders_nothing_is_counted() -> None:
    failpoints = Failpoints()

    failpoints.reached("a")

    assert not failpoints
    assert failpoints._counts == {}


def test_killed_at_a_failpoint_is_gone_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD.format(act="kill")], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "0\n1\n")


def test_stopped_at_a_failpoint_goes_on_when_it_is_continued() -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD.format(act="stop")], stdout=subprocess.PIPE, text=True)
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


def test_dispatcher_of_which_nothing_is_asked_has_its_ports_as_they_are() -> None:
    watch = read_watch({})
    port: Any = object()

    assert [watch.broker(port), watch.database(port), watch.graph(port)] == [port] * 3


def test_history_and_failpoints_are_read_from_the_environment(tmp_path: Path) -> None:
    asked = {"CODITECT_FAILPOINTS": "commit.after:raise"}
    watch = read_watch({**asked, "CODITECT_HISTORY": str(tmp_path), "CODITECT_CHAOS_NAME": "dispatcher-2"})

    watch.note(Type.OK, "effect", "it")

    assert [(one.proc, one.key) for one in read_histories(tmp_path)] == [(f"dispatcher-2#{os.getpid()}", "it")]
    with pytest.raises(FailpointReached):
        watch.reached("commit.after")


async def test_watched_graph_tells_what_the_graph_tells() -> None:
    points: list[str] = []
    graph = RecordedGraph(MemoryTaskGraph(), reached=points.append)
    job = Job("flow", "node", 0, Priority.P1, "work", (), JobState.QUEUED)
    gone = Change("flow", "gone", 0, Priority.P1, JobState.FINISHED)

    assert await graph.create([job]) == []
    assert await graph.create([job]) == [job]
    await graph.tell([gone])
    assert points == ["tell.before", "tell.after"] * 3


async def test_failpoints_of_adoption_are_reached_when_something_can_be_taken_and_when_it_was() -> None:
    points: list[str] = []
    graph = RecordedGraph(MemoryTaskGraph(), reached=points.append)
    await graph.create([Job("flow", "node", 0, Priority.P1, "work", (), JobState.QUEUED)])
    points.clear()

    assert await graph.adopt([], {"work": 1}) == []
    assert await graph.adopt([0], {}) == []
    assert points == []
    assert await graph.adopt([0], {"work": 1}) == [Proposal("flow", "node", "work")]
    assert await graph.adopt([0], {"work": 1}) == []
    assert points == ["adopt.before", "adopt.after", "adopt.before"]
