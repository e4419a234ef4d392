"""The demo as it happens: a live table on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agents.demo_summary import Settled, latest
from agents.demo_work import Job

_LINE_EVERY_SECONDS = 0.5


@dataclass(slots=True)
class Row:
    """The counts of one capability. A task is in one of the last three, or still waits."""

    submitted: int = 0
    running: int = 0
    done: int = 0
    failed: int = 0


@dataclass(slots=True)
class Board:
    """Counts per capability and the latest result. Touched by one event loop only."""

    rows: dict[str, Row] = field(default_factory=dict)
    latest: str = ""
    began: float = field(default_factory=time.monotonic)
    _running: set[int] = field(default_factory=set)

    def submitted(self, job: Job) -> None:
        """A task was accepted by the broker."""
        self.rows.setdefault(job.capability, Row()).submitted += 1

    def started(self, job: Job) -> None:
        """An agent reported that it works on the task; said again, it counts once."""
        if id(job) not in self._running:
            self._running.add(id(job))
            self.rows.setdefault(job.capability, Row()).running += 1

    def settled(self, one: Settled) -> None:
        """A task ended."""
        row = self.rows.setdefault(one.job.capability, Row())
        if id(one.job) in self._running:
            self._running.discard(id(one.job))
            row.running -= 1
        if one.value is None:
            row.failed += 1
        else:
            row.done += 1
        self.latest = latest(one.value) or self.latest

    @property
    def line(self) -> str:
        """All counts in one line."""
        rows = self.rows.values()
        done, failed = sum(row.done for row in rows), sum(row.failed for row in rows)
        submitted, running = sum(row.submitted for row in rows), sum(row.running for row in rows)
        seconds = time.monotonic() - self.began
        counts = f"submitted {submitted}  running {running}  done {done}  failed {failed}"
        return f"{seconds:5.1f} s  {counts}  {self.latest}"

    def table(self) -> Group:
        """The counts as a table, the latest result below it."""
        table = Table("capability", "submitted", "running", "done", "failed", title="Fleet at work")
        for column in table.columns[1:]:
            column.justify = "right"
        for capability, row in sorted(self.rows.items()):
            table.add_row(
                capability, *(str(count) for count in (row.submitted, row.running, row.done, row.failed))
            )
        return Group(table, Text(self.latest, overflow="ellipsis", no_wrap=True))


@asynccontextmanager
async def show(board: Board, console: Console) -> AsyncIterator[None]:
    """Show the board while the block runs."""
    if console.is_terminal:
        with Live(get_renderable=board.table, console=console, refresh_per_second=8):
            yield
        return
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(_print_lines(board, console, over))
        try:
            yield
        finally:
            over.set()


async def _print_lines(board: Board, console: Console, over: asyncio.Event) -> None:
    said = ""
    while not over.is_set():
        if board.line[8:] != said:
            said = board.line[8:]
            console.print(board.line, markup=False, highlight=False, soft_wrap=True)
        try:
            async with asyncio.timeout(_LINE_EVERY_SECONDS):
                await over.wait()
        except TimeoutError:
            continue
