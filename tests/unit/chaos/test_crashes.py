"""Processes that end by themselves: who tells why has not crashed."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from pathlib import Path

import pytest

from chaos.testbed import Post
from coditect.local.supervisor import Child
from tests.support import eventually

RECORD = 'print(\'{"event": "The agent cannot run", "traceback": "Traceback (most recent call last)"}\')'
PLAIN = "print('Error: The broker cannot be reached')"
ERROR = "{}['lost']"


@pytest.mark.parametrize(
    ("lives", "crashed"),
    [
        ([RECORD], False),
        ([PLAIN], False),
        ([ERROR], True),
        ([ERROR, PLAIN], False),
        ([PLAIN, "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"], True),
        (['print(\'{"reason": "A loop that the process needs died again and again"}\')'], True),
    ],
    ids=["a record", "a sentence", "a traceback", "an earlier life", "the interpreter", "a loop"],
)
async def test_process_has_crashed_when_it_met_what_nobody_expected(
    tmp_path: Path, lives: list[str], crashed: bool
) -> None:
    file = tmp_path / "life.py"
    child = Child("agent-1", (sys.executable, str(file)), dict(os.environ), tmp_path, ready=None)
    post = Post(child, marker=uuid.uuid4().hex, log_folder=tmp_path, paths={})
    for life in lives:
        await asyncio.to_thread(file.write_text, life)
        post.start()
        await eventually(lambda: not post.alive)

    assert post.crashed is crashed


@pytest.mark.parametrize(("code", "drained"), [(0, True), (1, False)])
async def test_process_has_drained_when_it_ended_without_an_error(tmp_path: Path, code: int, drained: bool) -> None:
    child = Child("agent-1", (sys.executable, "-c", f"exit({code})"), dict(os.environ), tmp_path, ready=None)
    post = Post(child, marker=uuid.uuid4().hex, log_folder=tmp_path, paths={})
    post.start()
    await eventually(lambda: not post.alive)

    assert post.drained is drained
