from __future__ import annotations

import pytest

from tests.unit.cli.scene import Served, Terminal


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def served(terminal: Terminal) -> Terminal:
    terminal.connections = Served()
    return terminal
