"""Which free slots are held against an agent, and how they are looked for."""

from __future__ import annotations

import asyncio

import pytest

from chaos.checks.history_index import HistoryIndex
from chaos.checks.slots import no_idle_slot
from chaos.history import HistoryEntry, Notebook, Type
from chaos.looking import keep_looking_at_slots, taken
from coditect.model.registration import Load
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.chaos.histories import FREE_SLOT, idle


@pytest.mark.parametrize(("seconds", "many"), [(0.05, 0), (0.1, 0), (0.15, 1)])
def test_slot_may_be_free_for_a_moment(seconds: float, many: int) -> None:
    check = no_idle_slot(HistoryIndex(idle(1.0, seconds)))  # 1.1 - 1.0 is a little more than 0.1

    assert (check.checked, len(check.violations)) == (1, many)


def test_slot_that_is_free_soon_after_a_fault_is_not_judged() -> None:
    fault = HistoryEntry(1.0, "chaos", Type.OK, "kill", "agent-2", {"kind": "agent.kill"})

    assert no_idle_slot(HistoryIndex([fault, *idle(5.0, 4.0)])).checked == 0
    assert no_idle_slot(HistoryIndex([fault, *idle(7.0, 2.0)])).violations == (
        f"{FREE_SLOT}, and took none from 7.00 for 2.00 s",
    )


def test_attempt_that_fails_and_is_tried_again_was_a_start() -> None:
    before = taken(Load(completed=20, failed=1, failed_attempts=5, running=2, suspended=1))

    assert taken(Load(completed=20, failed=1, failed_attempts=6, running=2, suspended=1)) == before + 1


@in_virtual_time
async def test_each_start_ends_the_time_of_a_free_slot() -> None:
    loop = asyncio.get_running_loop()
    began, notebook = loop.time(), Notebook(loop.time)
    seen = iter(["", "free, after 3", "free, after 3", "free, after 4", "", "", ""])
    looking = asyncio.ensure_future(keep_looking_at_slots(lambda: next(seen), notebook.of("chaos")))
    await asyncio.sleep(0.29)
    looking.cancel()

    times = [(one.key, round(one.t - began, 2), one.type) for one in notebook.entries]
    assert times == [
        ("free, after 3", 0.05, Type.INVOKE),
        ("free, after 3", 0.15, Type.OK),
        ("free, after 4", 0.15, Type.INVOKE),
        ("free, after 4", 0.2, Type.OK),
    ]
