from __future__ import annotations

from collections.abc import Iterator

import pytest

from coditect.sync import SyncClient
from tests.unit.sync.scene import FleetClient, Hall


@pytest.fixture
def hall() -> Hall:
    return Hall()


@pytest.fixture
def fleet(hall: Hall) -> FleetClient:
    """Not opened yet."""
    return FleetClient(hall.agent)


@pytest.fixture
def client(fleet: FleetClient, hall: Hall) -> Iterator[SyncClient]:
    with fleet.sync() as opened:
        hall.client = opened
        yield opened
        hall.let_go.set()
