"""An event loop that stands still is named and ended; one that turns, or a process that was stopped, is left alone."""

from __future__ import annotations

import ast
import asyncio
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvloop

from coditect.aio import loop
from coditect.aio.loop import STALLED_EXIT_CODE, LoopWatchdog, watched_loop
from tests.support import eventually, patient

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("coditect", "dispatcher", "agents")
NOT_OURS = (ROOT / "coditect" / "aio" / "loop.py", ROOT / "agents" / "demo" / "healing" / "till" / "app.py")
"""The one place, and the service that the demo heals, which knows nothing of the fleet."""


async def _own_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def test_program_runs_on_uvloop_when_it_is_installed() -> None:
    assert isinstance(loop.run_loop(_own_loop()), uvloop.Loop)


def test_program_runs_on_the_loop_of_asyncio_without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "uvloop", None)

    found = loop.run_loop(_own_loop())

    assert isinstance(found, asyncio.SelectorEventLoop)
    assert found.is_closed()


FORKING = """
import asyncio, multiprocessing, signal, sys, time
from coditect.aio import loop

def terminated():
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join()
    return child.exitcode

async def main():
    heard = []
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, heard.append, "SIGTERM")
    codes = [terminated(), await asyncio.to_thread(terminated)]
    await asyncio.sleep(0)
    print(codes, heard)

if sys.argv[1] == "asyncio":
    loop.uvloop = None
loop.keep_signals_from_children()
loop.run_loop(main())
"""


@pytest.mark.parametrize("kind", ["uvloop", "asyncio"])
def test_signal_to_a_forked_child_ends_the_child_and_does_not_reach_its_parent(kind: str) -> None:
    told = subprocess.run([sys.executable, "-c", FORKING, kind], stdout=subprocess.PIPE, check=True, text=True).stdout

    assert told == "[-15, -15] []\n"


OWN_LOOP = re.compile(r"asyncio\.(run|Runner|new_event_loop)")


@pytest.mark.parametrize("room", ROOMS)
def test_every_program_asks_the_one_place_for_its_loop(room: str) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / room).rglob("*.py") if path not in NOT_OURS}
    own_loops = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, text in texts.items()
        if OWN_LOOP.search(text)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and OWN_LOOP.fullmatch(ast.unparse(node))
    ]

    assert not own_loops


LIFE = """
import asyncio, logging, re, sys, time
from coditect.aio.loop import watched_loop

def blocked_here():
    {blocking}

async def main():
    with watched_loop({bound}):
        print("begun", flush=True)
        await asyncio.sleep(0.1)
        blocked_here()
        await asyncio.sleep({after})
        print("lived", flush=True)

logging.basicConfig(level="INFO", format="%(message)s %(stack)s")
asyncio.run(main())
"""


def blocked(seconds: float) -> None:
    time.sleep(seconds)


def life(blocking: str, *, bound: float, after: float = 0.0) -> subprocess.Popen[str]:
    code = LIFE.format(blocking=blocking, bound=bound, after=after)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def watching() -> bool:
    return any(thread.name == "loop watchdog" for thread in threading.enumerate())


@pytest.fixture
def loop_may_block() -> bool:
    return True


async def test_loop_that_stands_still_is_named_and_ended(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[int] = []
    watchdog = LoopWatchdog(asyncio.get_running_loop(), 0.4, end=ended.append, last_resort=False)
    with watchdog, caplog.at_level(logging.WARNING):
        deadline = time.monotonic() + 60
        while not ended and time.monotonic() < deadline:
            blocked(0.05)

    assert ended == [STALLED_EXIT_CODE]
    warning, error = [one for one in caplog.records if one.name == "coditect.aio.loop"]
    assert (warning.levelno, error.levelno) == (logging.WARNING, logging.ERROR)
    for told in (warning, error):
        assert "in blocked" in vars(told)["stack"]
        assert "test_loop.py" in vars(told)["at"]
        assert "to_thread" in vars(told)["fix"]


async def test_loop_that_turns_is_left_alone_however_busy(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[int] = []
    bound = patient(1.0)
    with LoopWatchdog(asyncio.get_running_loop(), bound, end=ended.append, last_resort=False):
        until = time.monotonic() + 1.5 * bound
        while time.monotonic() < until:
            blocked(0.02)
            await asyncio.sleep(0)

    assert not ended
    assert not [one for one in caplog.records if one.name == "coditect.aio.loop"]


async def test_stopped_watchdog_leaves_no_thread() -> None:
    with LoopWatchdog(asyncio.get_running_loop(), 5.0, last_resort=False):
        assert watching()

    assert not watching()


@pytest.mark.parametrize(
    "blocking",
    ["time.sleep(60)", "while True: pass", "re.match(r'(a+)+$', 'a' * 64 + 'b')"],
    ids=["sleeps", "computes", "holds the interpreter"],
)
async def test_process_whose_loop_is_blocked_says_where_and_ends(blocking: str) -> None:
    process = life(blocking, bound=0.5)

    _, told = await asyncio.to_thread(process.communicate, timeout=100)

    assert process.returncode != 0
    assert "blocked_here" in told


async def test_process_that_was_stopped_goes_on() -> None:
    process = life("time.sleep(0.0)", bound=1.0, after=1.5)
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)

    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(1.5)  # the fault itself: it stands still for longer than the bound
    process.send_signal(signal.SIGCONT)
    told, errors = await asyncio.to_thread(process.communicate, timeout=100)

    assert (process.returncode, told) == (0, "lived\n"), errors


async def test_bound_of_zero_watches_nothing() -> None:
    with watched_loop(0):
        assert not watching()


async def test_lateness_of_the_loop_is_told() -> None:
    late: list[float] = []
    ended: list[int] = []
    with LoopWatchdog(asyncio.get_running_loop(), 2.0, end=ended.append, last_resort=False, lag=late.append):
        await eventually(lambda: late)
        blocked(0.4)
        await eventually(lambda: max(late) > 0.25)

    assert min(late) >= 0
    assert not ended
