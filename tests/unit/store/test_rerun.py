"""The store that runs every function twice finds those that touch more than their transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from chaos.history import Notebook
from chaos.recorder import RecordedDatabase
from chaos.simulated_store import SimulatedDatabase
from dispatcher.ledger.definitions import Definitions
from dispatcher.ledger.effects import NodeKey
from dispatcher.store.transaction import Transaction, write_counter
from tests.rerun import FIRST_RUNS, THEN_EVERY, Impure, every_function_runs_twice, runs_twice

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def found() -> Iterator[list[Impure]]:
    with every_function_runs_twice() as found:
        yield found


async def test_a_cache_that_is_filled_before_the_commit_is_found_though_it_is_the_same_twice() -> None:
    definitions = Definitions()

    def fill(tr: Transaction) -> None:
        definitions.note({NodeKey("w", "n"): (b"x", None)})

    async with SimulatedDatabase() as database:
        with pytest.raises(Impure, match="changed what is not in the store"):
            await database.run(fill)


@pytest.mark.parametrize("recorded", [False, True])
async def test_a_function_with_another_outcome_the_second_time_is_found(recorded: bool) -> None:
    numbers, store = count(), SimulatedDatabase()
    notes = Notebook(lambda: 0.0).of("dispatcher")
    async with RecordedDatabase(store, notes) if recorded else store as database:
        await database.run(lambda tr: tr.add(b"count", 1))
        with pytest.raises(Impure, match="returned 0 None, and then 1 None"):
            await database.run(lambda tr: next(numbers))
        with pytest.raises(Impure, match="wrote"):
            await database.run(lambda tr: tr.set(b"a", b"%d" % next(numbers)))
        assert store.disk.values == {b"count": write_counter(1)}


async def test_a_function_that_needs_the_event_loop_is_found() -> None:
    async with SimulatedDatabase() as database:
        with pytest.raises(Impure, match="no running event loop"):
            await database.run(lambda tr: asyncio.get_running_loop().time() > 0)


async def test_a_find_that_a_loop_heals_is_kept(found: list[Impure]) -> None:
    numbers = count()

    async with SimulatedDatabase() as database:
        with suppress(Exception):
            await database.run(lambda tr: next(numbers))

    assert len(found) == 1


async def test_what_a_test_runs_again_and_again_is_run_twice_at_first_and_now_and_then() -> None:
    runs = list[int]()

    async with SimulatedDatabase() as database:
        for number in range(FIRST_RUNS + 2 * THEN_EVERY):
            await database.run(lambda tr, number=number: runs.append(number))  # type: ignore[misc]

    assert len(runs) == 2 * FIRST_RUNS + 2 * (THEN_EVERY + 1)


@pytest.mark.parametrize(
    ("folder", "twice"),
    [
        ("tests/unit/dispatcher", True),
        ("tests/unit/dispatcher/ledger/nodes", True),
        ("tests/unit/agent/execution", False),
        ("tests/integration/dispatcher", False),
    ],
)
def test_functions_of_a_room_run_twice_however_deep_their_test_lies(folder: str, twice: bool) -> None:
    assert runs_twice(Path(folder) / "test_something.py") is twice
