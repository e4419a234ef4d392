"""The store that runs every function twice finds those that touch more than their transaction."""

from __future__ import annotations

import asyncio
from itertools import count

import pytest

from dispatcher.ledger.definitions import Definitions
from dispatcher.ledger.effects import NodeKey
from dispatcher.store.memory import MemoryDatabase
from dispatcher.store.transaction import Transaction, read_counter
from tests.rerun import Impure


async def test_a_function_that_touches_nothing_else_is_committed_once() -> None:
    async with MemoryDatabase() as database:
        await database.run(lambda tr: tr.add(b"count", 1))

        assert read_counter(database.disk.values[b"count"]) == 1


async def test_a_cache_that_is_filled_before_the_commit_is_found_though_it_is_the_same_twice() -> None:
    definitions = Definitions()

    def fill(tr: Transaction) -> None:
        definitions.note({NodeKey("w", "n"): (b"x", None)})

    async with MemoryDatabase() as database:
        with pytest.raises(Impure, match="changed what is not in the store"):
            await database.run(fill)


async def test_a_function_with_another_outcome_the_second_time_is_found() -> None:
    numbers = count()

    async with MemoryDatabase() as database:
        with pytest.raises(Impure, match="returned 0 None, and then 1 None"):
            await database.run(lambda tr: next(numbers))
        with pytest.raises(Impure, match="wrote"):
            await database.run(lambda tr: tr.set(b"a", b"%d" % next(numbers)))

        assert database.disk.values == {}


async def test_a_function_that_needs_the_event_loop_is_found() -> None:
    async with MemoryDatabase() as database:
        with pytest.raises(Impure, match="no running event loop"):
            await database.run(lambda tr: asyncio.get_running_loop().time() > 0)
