"""The programs that the reader of the documentation starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.forked import forked_commands
from tests.docs.reader import ALONE


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the programs that are forked."""
    with forked_commands(tmp_path_factory.mktemp("commands"), os.environ | ALONE) as folder:
        yield folder
