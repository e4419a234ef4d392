from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest
import uvloop

from coditect.aio import loop

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
