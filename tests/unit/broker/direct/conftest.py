from __future__ import annotations

import pytest

from tests.unit.broker.direct.wire import Wire


@pytest.fixture
async def wire() -> Wire:
    return Wire()
