from __future__ import annotations

import pytest

from tests.unit.cli.scene import Terminal


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()
