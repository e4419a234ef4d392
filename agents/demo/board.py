"""The display of the running demo: a live table on a terminal, else a line when counts change."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agents.demo.summary import Settled, latest
from agents.demo.work import DemoTask
from coditect import Event

_FRAME_SECONDS = 0.125
_LINE_SECONDS = 0.5


COUNTS = ("submitted", "running", "done", "failed")


@dataclass(slots=True)
class Board:
    """The demo's record of its submitted, running and ended tasks; starts come from the agents' events.

    An event may come before its task's submit has returned, and a missed one only makes "running" too low. Only one
    event loop uses the board.
    """

    latest: str = ""
    began: float = field(default_factory=time.monotonic)
    _jobs: dict[str, DemoTask] = field(default_factory=dict)
    _started: set[str] = field(default_factory=set)
    _settled: dict[str, bool] = field(default_factory=dict)
    _agents: set[tuple[str, str]] = field(default_factory=set)

    def submitted(self, task_id: str, job: DemoTask) -> None:
        """Count a task as submitted, once the broker has confirmed it."""
        self._jobs[task_id] = job

    def heard(self, event: Event) -> None:
        """Count a task as running when the event is the agent's `task.started`."""
        if event.type == "task.started":
            self._started.add(event.subject)

    def settled(self, task_id: str, end: Settled) -> None:
        """Count a task as done or failed, note which agent answered, and keep any result as the latest to show."""
        self._jobs.setdefault(task_id, end.job)
        self._settled[task_id] = end.value is not None
        self._agents.add((end.job.capability, end.agent_id))
        self.latest = latest(end.value) or self.latest

    @property
    def rows(self) -> dict[str, Counter[str]]:
        """The counts of submitted tasks by capability, in alphabetical order, in all and by what became of each."""
        rows = {capability: Counter[str]() for capability in sorted({job.capability for job in self._jobs.values()})}
        for task_id, job in self._jobs.items():
            rows[job.capability].update(("submitted", self._state(task_id)))
        return rows

    def _state(self, task_id: str) -> str:
        if task_id in self._settled:
            return "done" if self._settled[task_id] else "failed"
        return "running" if task_id in self._started else "waiting"

    def done(self, capability: str) -> int:
        """Return how many tasks of a capability ended with a value."""
        return self.rows.get(capability, Counter())["done"]

    def agents(self, capability: str) -> int:
        """Return how many agents have answered tasks of a capability."""
        return sum(name == capability and bool(agent_id) for name, agent_id in self._agents)

    @property
    def open(self) -> int:
        """The number of tasks that were submitted and have not ended."""
        return len(self._jobs) - len(self._settled)

    @property
    def asked(self) -> int:
        """The number of started tasks that agents, and not the demo, submitted."""
        return len(self._started - self._jobs.keys())

    @property
    def counts(self) -> str:
        """The counts of all capabilities' tasks in one line, with the latest result."""
        total = sum(self.rows.values(), Counter[str]())
        return "  ".join([*(f"{name} {total[name]}" for name in COUNTS), self.latest]).rstrip()

    def table(self) -> Group:
        """Return the counts of tasks as a table, with the latest result below it."""
        table = Table("capability", *COUNTS, title="The fleet at work")
        for column in table.columns[1:]:
            column.justify = "right"
        for capability, row in self.rows.items():
            table.add_row(capability, *(str(row[name]) for name in COUNTS))
        seconds = time.monotonic() - self.began
        table.caption = f"{seconds:.1f} s, {self.asked} requests between agents"
        return Group(table, Text(self.latest, overflow="ellipsis", no_wrap=True))


@asynccontextmanager
async def show(board: Board, console: Console) -> AsyncIterator[None]:
    """Show the board on the console while the block runs, and once more at its end."""
    said = ""
    screen: AbstractContextManager[Live | None] = nullcontext()
    if console.is_terminal:
        screen = Live(board.table(), console=console, auto_refresh=False)

    def draw() -> None:
        nonlocal said
        if live is not None:
            live.update(board.table(), refresh=True)
        elif board.counts != said:
            said, seconds = board.counts, time.monotonic() - board.began
            console.print(f"{seconds:5.1f} s  {said}", markup=False, highlight=False, soft_wrap=True)

    async def draw_often() -> None:
        while True:
            draw()
            await asyncio.sleep(_LINE_SECONDS if live is None else _FRAME_SECONDS)

    with screen as live:
        async with asyncio.TaskGroup() as group:
            drawing = group.create_task(draw_often())
            try:
                yield
            finally:
                drawing.cancel()
                draw()
