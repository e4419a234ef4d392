from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from chaos.simulated_store import SimulatedDatabase
from tests.unit.dispatcher.lone_ledger import Ledger, SlowStore
from tests.unit.dispatcher.lone_worker import LoneWorker, open_worker
from tests.unit.dispatcher.planes import Plane, plane


@pytest.fixture
async def ledger() -> AsyncIterator[Ledger]:
    """A shard's ledger on a store whose reads take a millisecond or two, as those of a cluster."""
    async with SlowStore() as database:
        yield await Ledger.open(database)


@pytest.fixture
async def prompt_ledger() -> AsyncIterator[Ledger]:
    """The same on a store for which no time passes, for what is to happen in one transaction on any machine."""
    async with SimulatedDatabase(now=lambda: 0.0) as database:
        yield await Ledger.open(database)


@pytest.fixture
async def lone() -> AsyncIterator[LoneWorker]:
    """The worker of one shard, at work."""
    async with open_worker() as opened:
        yield opened


@pytest.fixture
async def made() -> AsyncIterator[Plane]:
    """A control plane in memory, with the parts that a test adds to it."""
    async with plane() as opened:
        yield opened
