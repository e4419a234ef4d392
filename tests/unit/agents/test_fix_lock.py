"""The lock of a fix, which is held as long as its remedy goes on, also when the fix is canceled."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from agents import healer
from agents.deployment.service import Service
from agents.healing.diagnosis import ServiceEvidence
from agents.healing.watched import FolderKind
from coditect.errors import LockTaken, TaskCanceled
from coditect.testing import TestFleet


async def test_a_canceled_fix_is_locked_until_its_remedy_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def remedy(*_: object) -> str:
        begun.set()
        assert go_on.wait(30)
        return "done"

    monkeypatch.setattr(FolderKind, "examine", lambda _: ServiceEvidence(running=False))
    monkeypatch.setattr(FolderKind, "remedy", remedy)
    resource = f"service:{Service(tmp_path).folder.resolve()}"
    monkeypatch.setenv("CODITECT_FLEET_ROOT", str(tmp_path))
    async with TestFleet(agents=[healer.healer], stuck_after="1m") as fleet:  # no virtual time passes beside the remedy
        try:
            fixing = await fleet.client.submit("service.fix", {"service": str(tmp_path), "cause": "hung"})
            assert await asyncio.to_thread(begun.wait, 30)
            await fixing.cancel()
            with pytest.raises(TaskCanceled):
                await fixing.result()
            with pytest.raises(LockTaken):
                await fleet.client.lock(resource, timeout=0).__aenter__()
        finally:
            go_on.set()
            async with fleet.client.lock(resource, timeout="30s"):
                pass  # the remedy has ended, and with it the handler's thread
