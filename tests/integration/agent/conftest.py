from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coditect.local import PrivateServers
from tests.integration.agent.fleet import Fleet, open_fleet


@pytest.fixture
async def fleet(own_servers: PrivateServers, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with open_fleet(own_servers, tmp_path) as opened:
        yield opened
