from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from agents.load import LoadDone, LoadWork, append_effect, effect_log, work
from coditect import Context


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "load" / "effects.log"
    monkeypatch.setenv("CODITECT_LOAD_LOG", str(file))
    return file


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


async def test_work_leaves_one_line_per_execution(log: Path, ctx: Context) -> None:
    first = await work(LoadWork(milliseconds=1), ctx)
    await work(LoadWork(milliseconds=0), ctx)

    assert lines_of(log) == [f"task-1 agent-1 {os.getpid()} 2"] * 2
    assert first == LoadDone(task_id="task-1", agent_id="agent-1", pid=os.getpid(), attempt=2)


async def test_cancelled_work_leaves_no_line(log: Path, ctx: Context) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await work(LoadWork(milliseconds=60_000), ctx)

    assert lines_of(log) == []


def test_lines_written_at_once_never_mix(log: Path) -> None:
    done = [LoadDone(task_id=f"task-{n}", agent_id="a" * 200, pid=1, attempt=1) for n in range(40)]

    threads = [threading.Thread(target=append_effect, args=(log, one)) for one in done]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    lines = lines_of(log)
    assert {line.split()[0] for line in lines} == {one.task_id for one in done}
    assert all(len(line.split()) == 4 for line in lines)


def test_log_lies_below_the_working_folder_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODITECT_LOAD_LOG", raising=False)

    assert effect_log() == Path(".coditect/load/effects.log")


@pytest.mark.parametrize("milliseconds", [-1, 60_001])
def test_time_outside_the_range_is_refused(milliseconds: int) -> None:
    with pytest.raises(ValidationError):
        LoadWork(milliseconds=milliseconds)
