"""Where `coditect up` lets the HTTP API listen."""

from __future__ import annotations

import socket

from coditect.cli.local.up import free_port, http_api


def test_the_api_takes_the_port_that_the_environment_names() -> None:
    (program,), address = http_api({"CODITECT_API_PORT": "18009"})

    assert address == "http://127.0.0.1:18009"
    assert program.env == {"CODITECT_API_PORT": "18009"}
    assert program.announces_ready


def test_another_port_is_taken_when_the_preferred_one_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        preferred = taken.getsockname()[1]
        assert free_port("127.0.0.1", preferred) not in (0, preferred)

    assert free_port("127.0.0.1", preferred) == preferred
