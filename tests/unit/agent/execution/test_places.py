"""How many suspects run at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from coditect.agent.execution import Execution, Suspicion
from coditect.agent.quarantine import Isolation
from coditect.aio.supervisor import Supervisor
from coditect.model.capability import Priority
from coditect.model.task import Task
from tests.support import eventually

TASK = Task("a.b", Priority.P1, b"1")


class Everyone:
    """Suspects everybody."""

    @asynccontextmanager
    async def examined(self, *_: object, **more: object) -> AsyncIterator[Suspicion]:
        yield Suspicion.RECORDED


class Suspending:
    """Counts who waits without a slot."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.waiting = 0

    def may_suspend(self, received: Execution) -> bool:
        return self.waiting < self.most

    def suspend(self, received: Execution) -> None:
        self.waiting += 1

    async def resume(self, received: Execution) -> None:
        self.abandon(received)

    def abandon(self, received: Execution) -> None:
        self.waiting -= 1


class Stage:
    """One place for each depth, and who is in it."""

    def __init__(self, background: Supervisor, *, most_suspended: int = 10) -> None:
        self.intake = Suspending(most_suspended)
        self.isolation = Isolation(cast(Any, Everyone()), cast(Any, self.intake), slots=1)
        self.inside: list[str] = []
        self._background = background
        self._leave: dict[str, asyncio.Event] = {}

    def enter(self, name: str, *, depth: int = 0) -> asyncio.Task[None]:
        self._leave[name] = asyncio.Event()
        return self._background.start(self._stay(name, depth), name=name)

    async def _stay(self, name: str, depth: int) -> None:
        received = Execution(replace(TASK, depth=depth), cast(Any, None), None)
        async with self.isolation.around(received):
            self.inside.append(name)
            await self._leave[name].wait()
        self.inside.remove(name)

    def leave(self, name: str) -> None:
        self._leave[name].set()


@pytest.fixture
async def background() -> AsyncIterator[Supervisor]:
    async with Supervisor() as opened:
        yield opened


async def test_who_finds_no_place_waits_without_a_slot(background: Supervisor) -> None:
    stage = Stage(background)
    stage.enter("first")
    stage.enter("second")
    await eventually(lambda: stage.intake.waiting == 1)
    assert stage.inside == ["first"]

    stage.leave("first")

    await eventually(lambda: stage.inside == ["second"])
    assert stage.intake.waiting == 0


async def test_who_is_awaited_by_a_suspect_has_a_place_of_its_own(background: Supervisor) -> None:
    stage = Stage(background)
    stage.enter("parent", depth=0)
    stage.enter("child", depth=1)

    await eventually(lambda: stage.inside == ["parent", "child"])


async def test_who_may_not_wait_goes_on_without_a_place(background: Supervisor) -> None:
    stage = Stage(background, most_suspended=0)
    stage.enter("first")
    stage.enter("second")

    await eventually(lambda: stage.inside == ["first", "second"])


async def test_who_is_canceled_while_waiting_takes_no_place_along(background: Supervisor) -> None:
    stage = Stage(background)
    stage.enter("first")
    waiting = stage.enter("second")
    await eventually(lambda: stage.intake.waiting == 1)

    waiting.cancel()
    await eventually(waiting.done)
    assert stage.intake.waiting == 0
    stage.leave("first")
    stage.enter("third")

    await eventually(lambda: stage.inside == ["third"])
