"""Whatever the moment of a power loss, the store opens, and each workflow that was accepted ends as it would have."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from chaos.audit import Ledger, audit, read_ledger
from coditect.client.client import Client
from coditect.errors import NotFound
from coditect.workflow.states import WorkflowState
from dispatcher.ledger.keyspace import ATTEMPTS
from dispatcher.ledger.rows import unpack_attempt
from dispatcher.store.transaction import Reads
from tests.faults.power import NODES, powered
from tests.servers import ROOT
from tests.support import eventually

pytestmark = [pytest.mark.endurance, pytest.mark.timeout(1_800)]

STORES, COPIES = 20, 10
LONGEST_PAUSE_SECONDS = 0.1
HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
"""The bytes before the first frame of a write-ahead log, and before the page in each frame."""


@contextmanager
def load(store: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process that starts workflows on the store, and the file of what it says."""
    said = store.with_suffix(".said")
    with said.open("wb") as output:
        command = [sys.executable, "-m", "tests.faults.power", str(store)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, start_new_session=True)
        try:
            yield process, said
        finally:
            process.kill()
            process.wait()


def copied(store: Path, process: subprocess.Popen[bytes], said: Path, chance: random.Random) -> tuple[Path, list[str]]:
    """The store as the loss of power leaves it, and the workflows that were accepted by then."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        copy = store.with_name(f"copy-{chance.getrandbits(64):x}.db")
        copy.write_bytes(store.read_bytes())
        log = Path(f"{store}-wal").read_bytes()
        Path(f"{copy}-wal").write_bytes(torn(log, chance))
        return copy, said.read_text().split()
    finally:
        process.send_signal(signal.SIGCONT)


def torn(log: bytes, chance: random.Random) -> bytes:
    """A write-ahead log whose end, behind the last commit, is cut off anywhere and in part overwritten."""
    page, salt = int.from_bytes(log[8:12], "big"), log[16:24]
    frame, end = FRAME_HEADER_BYTES + page, HEADER_BYTES
    for at in range(HEADER_BYTES, len(log) - frame + 1, frame):
        if log[at + 8 : at + 16] != salt:  # what is left of the log before the last checkpoint
            break
        if log[at + 4 : at + 8] != bytes(4):
            end = at + frame
    kept = chance.randint(end, len(log))
    return log[: (end + kept) // 2] + chance.randbytes(kept - (end + kept) // 2)


def looked_through(tr: Reads) -> tuple[Ledger, list[tuple[str, str]], list[str]]:
    """The ledger, its contradictions, and the nodes that ran again after an attempt that had completed."""
    ledger = read_ledger(tr)
    earlier = (unpack_attempt(str(ATTEMPTS.unpack(key)[1]), row) for key, row in tr.get_range(*ATTEMPTS.range()))
    return ledger, [*audit(tr, ledger)], [attempt.node for attempt in earlier if attempt.status == "completed"]


async def ends_well(copy: Path, accepted: list[str]) -> None:
    async with powered(copy) as (database, client):
        await eventually(lambda: all_ended(client, accepted), seconds=60.0)
        ledger, wrong, again = await database.read(looked_through)
        assert wrong == []
        assert {ledger.runs[workflow].state for workflow in accepted} <= {WorkflowState.COMPLETED}
        assert {len(ledger.nodes[workflow]) for workflow in accepted} <= {NODES}
        assert again == []


async def all_ended(client: Client, accepted: list[str]) -> bool:
    states = [await client.workflows.get(workflow).state() for workflow in accepted[-64:]]
    return all(state.terminal for state in states)


@pytest.mark.parametrize("number", range(STORES))
async def test_accepted_workflows_end_once_after_a_power_loss(number: int, tmp_path: Path) -> None:
    chance, store = random.Random(number), tmp_path / "store.db"
    with load(store) as (process, said):
        await eventually(lambda: said.exists() and bool(said.read_text()), seconds=30.0)
        for _ in range(COPIES):
            await asyncio.sleep(chance.uniform(0, LONGEST_PAUSE_SECONDS))
            copy, accepted = await asyncio.to_thread(copied, store, process, said, chance)
            await ends_well(copy, accepted)


async def test_a_commit_that_was_acknowledged_and_is_lost_would_be_seen(tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    with load(store) as (process, said):
        await eventually(lambda: said.exists() and bool(said.read_text()), seconds=30.0)
        copy, accepted = await asyncio.to_thread(copied, store, process, said, random.Random(0))
    log = Path(f"{copy}-wal")
    log.write_bytes(log.read_bytes()[:HEADER_BYTES])

    with pytest.raises(NotFound):
        await ends_well(copy, accepted)
