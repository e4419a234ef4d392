"""The example of an HTTP agent answers every input."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from httpx2 import AsyncClient

from coditect.local.servers import free_ports
from tests.servers import ROOT
from tests.support import eventually


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


async def test_an_input_without_a_text_is_refused() -> None:
    (port,) = free_ports(1)
    statuses = []
    with subprocess.Popen([sys.executable, str(ROOT / "examples" / "http_agent.py"), str(port)]) as process:
        try:
            await eventually(lambda: listens(port))
            async with AsyncClient() as http:
                for given in ({"text": "to be"}, {"txt": "to be"}, {"text": 1}, None, "to be"):
                    event = {"event_id": "one", "parameters": given}
                    answer = await http.post(f"http://127.0.0.1:{port}/agent-request", json=event)
                    statuses.append((answer.status_code, "error" in answer.json()))
        finally:
            process.kill()

    assert statuses == [(200, False), *[(422, True)] * 4]
