"""The alarm of a shard's timers rings although the store did not answer meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import pytest

from coditect.background import Background
from coditect.clock import Clock, SystemClock
from dispatcher import alarm
from dispatcher.alarm import Alarm
from dispatcher.commands import Due
from dispatcher.layers import timers
from dispatcher.layers.timers import Timer
from dispatcher.ports import Ports
from dispatcher.settling import Settle
from dispatcher.store.errors import TransactionTimedOut
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.transaction import Reads
from tests.support import eventually

Value = TypeVar("Value")


class Silent(MemoryDatabase):
    """Does not answer so many reads."""

    silent = 0

    async def read(self, body: Callable[[Reads], Value]) -> Value:
        if self.silent:
            self.silent -= 1
            raise TransactionTimedOut("The fault that was asked for")
        return await super().read(body)


@dataclass
class Around:
    """The part of the ports that an alarm touches."""

    database: MemoryDatabase
    clock: Clock
    background: Background


@pytest.mark.parametrize("look", ["ring", "look again"])
async def test_alarm_rings_after_an_outage_of_the_store(monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    monkeypatch.setattr(alarm, "AGAIN_MS", 20)
    rung: list[Timer] = []

    def put(command: Due, settle: Settle) -> None:
        rung.append(command.timer)

    async with Silent() as database, Background() as background:
        clock = SystemClock()
        ports = cast(Ports, Around(database, clock, background))
        timer = Timer("w", "n", "retry", clock.now_ms())
        await database.run(lambda tr: timers.put(tr, 0, timer))
        waiting = Alarm(0, ports, put)
        database.silent = 3

        acts: dict[str, Callable[[], Any]] = {
            "ring": lambda: waiting.set(timer.due_ms),
            "look again": waiting.look_again,
        }
        acts[look]()

        await eventually(lambda: rung == [timer])
        assert database.silent == 0
        waiting.close()
