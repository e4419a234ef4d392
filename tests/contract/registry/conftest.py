from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import pytest

from coditect.registry.memory import MemoryRegistry
from coditect.registry.redis import RedisRegistry
from tests.integration.registry.private_redis import run_private_redis


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server shared by the tests; each uses a prefix of its own and flushes nothing."""
    given = os.environ.get("CODITECT_TEST_REDIS_URL")
    if given:
        yield given
        return
    with run_private_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.servers)])
async def registry(request: pytest.FixtureRequest) -> AsyncIterator[MemoryRegistry | RedisRegistry]:
    if request.param == "memory":
        async with MemoryRegistry() as memory:
            yield memory
    else:
        url = request.getfixturevalue("redis_url")
        async with RedisRegistry(url, prefix=f"test-{uuid4().hex}:") as redis:
            yield redis
