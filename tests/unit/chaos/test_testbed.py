"""The processes of a testbed: how one ended, and who is looked for in the registry."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos.history import Notebook, Type
from chaos.looking import RegistryLook, keep_looking
from chaos.testbed import ChaosTestbed, Post
from coditect.local.supervisor import Child
from coditect.model.ids import AgentId
from coditect.model.registration import AgentRecord, Load, Registration
from coditect.registry.memory import MemoryRegistry
from coditect.registry.port import Search
from tests.support import eventually
from tests.unit.broker.virtual_time import in_virtual_time


def post(name: str, pid: int | None, *, stopped: bool = False, ready: bool = True) -> Any:
    return SimpleNamespace(name=name, pid=pid, life=f"{name}#{pid}", stopped=stopped, ready=ready)


def registered(pid: int) -> Registration:
    return Registration(AgentId(f"worker-{pid}"), "worker", "1.0.0", 1, (), pid=pid)


def test_agents_now_are_who_runs_and_who_is_ready_for_work_and_nobody_that_stands_still() -> None:
    posts = {
        one.name: one
        for one in (
            post("agent-1", 7),
            post("agent-2", 8, stopped=True),
            post("agent-3", 9, ready=False),
            post("agent-4", None),
            post("dispatcher-1", 10),
        )
    }
    testbed = ChaosTestbed(Path(), cast(Any, None), posts)

    agents = testbed.agents_now()

    assert agents == RegistryLook(frozenset({"agent-1#7", "agent-3#9"}), frozenset({"agent-1#7"}))
    named = [testbed.life_of(AgentRecord(registered(pid), Load(), 1_000)) for pid in (7, 8, 99)]
    assert named == ["agent-1#7", "agent-2#8", "99"]  # who was never there has no other name


@pytest.mark.parametrize("failing", [False, True])
async def test_look_says_who_was_there_and_who_was_listed_or_that_nobody_answered(failing: bool) -> None:
    notebook = Notebook(asyncio.get_running_loop().time)
    agents = RegistryLook(frozenset({"worker-1", "worker-2"}), frozenset({"worker-1"}))
    async with MemoryRegistry() as registry:
        await registry.register(registered(1), Load(), lease_seconds=3.0)
        registry.failing = failing
        looking = keep_looking(registry, lambda: agents, notebook.of("chaos"), name_of=lambda record: record.agent_id)
        task = asyncio.create_task(looking)
        await eventually(lambda: len(notebook.entries) == 2)
        task.cancel()

    begun, end = notebook.entries
    assert (begun.type, begun.val) == (Type.INVOKE, {"running": ["worker-1", "worker-2"], "at_work": ["worker-1"]})
    assert (end.type, end.val) == ((Type.FAIL, {}) if failing else (Type.OK, {"listed": ["worker-1"]}))


class SlowRegistry(MemoryRegistry):
    """A registry that takes a while to answer."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    async def find(self, search: Search) -> tuple[AgentRecord, ...]:
        await asyncio.sleep(self.seconds)
        return await super().find(search)


@pytest.mark.parametrize(("seconds", "gap"), [(0.0, 1.0), (0.4, 1.0), (1.5, 1.5)])
@in_virtual_time
async def test_look_begins_once_a_second_however_long_the_registry_takes(seconds: float, gap: float) -> None:
    notebook, nobody = Notebook(asyncio.get_running_loop().time), RegistryLook(frozenset(), frozenset())
    async with SlowRegistry(seconds) as registry:
        looking = keep_looking(registry, lambda: nobody, notebook.of("chaos"), name_of=lambda record: record.agent_id)
        with suppress(TimeoutError):
            await asyncio.wait_for(looking, 10.0)

    begun = [one.t for one in notebook.entries if one.type is Type.INVOKE]
    assert [after - before for before, after in pairwise(begun)] == pytest.approx([gap] * (len(begun) - 1))
    assert len(begun) > 5


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
