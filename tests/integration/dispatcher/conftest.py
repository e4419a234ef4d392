from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from coditect.local import PrivateServers
from tests.servers import private_servers_of_run


@pytest.fixture(scope="session")
def managed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServers]:
    """A RabbitMQ with its management API, and a Redis."""
    folder = tmp_path_factory.mktemp("managed") / "servers"
    with private_servers_of_run(folder, os.environ, management=True) as private:
        yield private
