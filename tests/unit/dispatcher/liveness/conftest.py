from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.dispatcher.liveness.watch import Watch, open_watch
from tests.unit.testing.workers import Sleepers


@pytest.fixture
def sleepers() -> Sleepers:
    return Sleepers()


@pytest.fixture
async def watch(sleepers: Sleepers) -> AsyncIterator[Watch]:
    async with open_watch([sleepers.agent]) as opened:
        yield opened
