"""Where the HTTP API of `coditect up` listens, and how its address is known."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from coditect.aio.launch import READY_FILE, tell_ready
from coditect.api.program import listener
from coditect.cli.local.up import http_api
from coditect.errors import SetupError
from coditect.local.state import UpFolder


def test_port_of_the_environment_is_taken_and_no_other() -> None:
    (named,), (usual,) = http_api({"CODITECT_API_PORT": "18009"}), http_api({})

    assert "--any-port" not in named.argv
    assert "--any-port" in usual.argv
    assert named.announces_ready


def test_another_port_is_taken_when_the_port_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match="cannot listen"):
            listener("127.0.0.1", port)
        with listener("127.0.0.1", port, or_any=True) as other:
            assert other.getsockname()[1] != port


def test_address_is_known_from_the_ready_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = UpFolder(tmp_path)
    folder.run.mkdir()
    before = folder.address_of("api")
    monkeypatch.setenv(READY_FILE, str(folder.ready_file("api")))
    tell_ready(address="http://127.0.0.1:8009")

    assert (before, folder.address_of("api")) == (None, "http://127.0.0.1:8009")
