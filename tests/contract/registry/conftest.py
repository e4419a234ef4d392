from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from coditect.registry.memory import MemoryRegistry
from coditect.registry.redis import RedisRegistry


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.servers)])
def server_url(request: pytest.FixtureRequest) -> str:
    """Redis' address, empty for the in-memory twin; not a coroutine, since it may start the server."""
    return str(request.getfixturevalue("redis_url")) if request.param == "redis" else ""


@pytest.fixture
async def registry(server_url: str) -> AsyncIterator[MemoryRegistry | RedisRegistry]:
    """Each test uses a prefix of its own and flushes nothing."""
    prefix = f"test-{uuid4().hex}:"
    chosen = RedisRegistry(server_url, prefix=prefix, timeout_seconds=30) if server_url else MemoryRegistry()
    async with chosen as opened:
        yield opened
