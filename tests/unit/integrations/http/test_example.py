"""The example of an HTTP agent answers every input."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from httpx2 import AsyncClient

from coditect.local.servers.ports import free_ports
from tests.servers import ROOT
from tests.support import eventually


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.parametrize(
    ("given", "status"),
    [({"text": "to be"}, 200), ({"txt": "to be"}, 422), ({"text": 1}, 422), (None, 422), ("to be", 422)],
)
async def test_an_input_without_a_text_is_refused(given: Any, status: int) -> None:
    (port,) = free_ports(1)
    with subprocess.Popen([sys.executable, str(ROOT / "examples" / "http_agent.py"), str(port)]) as process:
        try:
            await eventually(lambda: listens(port))
            async with AsyncClient() as http:
                event = {"event_id": "one", "parameters": given}
                answer = await http.post(f"http://127.0.0.1:{port}/agent-request", json=event)
        finally:
            process.kill()

    assert answer.status_code == status
    assert ("error" in answer.json()) is (status == 422)
