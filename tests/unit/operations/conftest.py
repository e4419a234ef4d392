from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.operations.scene import Scene


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    await made.open()
    yield made
    await made.close()
