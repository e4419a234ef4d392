from __future__ import annotations

import pytest

from tests.unit.layers.scene import End, Store


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture(params=End)
def end(request: pytest.FixtureRequest) -> End:
    """How the commit under test ends."""
    found: End = request.param
    return found
