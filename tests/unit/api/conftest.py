from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from httpx2 import AsyncClient

from coditect import Agent
from coditect.testing import TestFleet
from tests.api import api_of

counter = Agent("counter", version="1.0.0")


@counter.capability("text.count")
async def count(text: str) -> int:
    """Count letters."""
    if not text:
        raise ValueError("there is no text")
    return len(text)


@pytest.fixture
async def fleet() -> AsyncIterator[TestFleet]:
    async with TestFleet(agents=[counter]) as fleet:
        yield fleet


@pytest.fixture
async def api(fleet: TestFleet) -> AsyncIterator[AsyncClient]:
    async with api_of(fleet) as http:
        yield http
