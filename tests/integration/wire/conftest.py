from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fleet import Running, running
from tests.integration.wire.agent import Echo
from tests.servers import Servers


@pytest.fixture
def echo(capability: str) -> Echo:
    return Echo(capability)


@pytest.fixture
async def fleet(echo: Echo, servers: Servers) -> AsyncIterator[Running]:
    """An agent of this test's own capability at work."""
    async with running(echo.agent(), servers) as opened:
        yield opened
