"""Shows the progress of a workflow or a task on stderr: a bar on a terminal, else a line for each change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from coditect.cli.terminal.output import say
from coditect.model.message import Event
from coditect.settings.addresses import printable
from coditect.workflow.rows import WorkflowRow
from coditect.workflow.states import TaskState

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_SECONDS = 1.0
"""The least number of seconds between two printed progress lines."""
BAR_WIDTH = 40
PROGRESS = "task.progress"
_STYLES = {
    TaskState.COMPLETED: "green",
    TaskState.WORKING: "cyan",
    TaskState.PUBLISHED: "blue",
    TaskState.FAILED: "red",
    TaskState.DEAD: "red",
    TaskState.REJECTED: "magenta",
    TaskState.AWAITING_APPROVAL: "yellow",
    TaskState.WAITING: "yellow",
    TaskState.RETRY_WAIT: "yellow",
}
SILENCE = "The control plane does not answer; the workflow is waited for"

Show = Callable[[WorkflowRow | None], None]
"""A callback that shows a workflow's latest row; None means that the control plane did not answer."""


@contextmanager
def shown_progress() -> Iterator[Show]:
    """Yield a function that shows a workflow's state and node counts on stderr, until the block ends."""
    if sys.stderr.isatty():
        with _drawn() as show:
            yield show
    else:
        yield Lines().show


class Lines:
    """Progress of a workflow as printed lines: one for each change, at most one a second, and the final state."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._told_at = -LINE_SECONDS
        self._told = ""

    def show(self, row: WorkflowRow | None) -> None:
        """Print a workflow's state and node counts if they changed, at most once a second; a final state at once.

        None stands for a control plane that does not answer, which is printed, too.
        """
        now = self._clock()
        text = SILENCE if row is None else counted(row)
        over = row is not None and row.state.terminal
        if text != self._told and (over or now - self._told_at >= LINE_SECONDS):
            say(f"{now - self._begun:7.1f} s  {text}")
            self._told, self._told_at = text, now


def counted(row: WorkflowRow) -> str:
    """Return a workflow's state and its number of nodes in each state as one line of text."""
    states = ", ".join(f"{row.counts[state]} {state.value}" for state in TaskState if row.counts.get(state))
    return f"{row.state.value}: {row.ended} of {row.total} ended" + (f" ({states})" if states else "")


@contextmanager
def shown_events() -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows each event of one task on stderr, until the block ends."""
    if not sys.stderr.isatty():
        yield lambda event: say(told(event))
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True, soft_wrap=True), transient=True, refresh_per_second=8) as live:
        begun = time.monotonic()

        def show(event: Event) -> None:
            if event.type == PROGRESS:
                live.update(_bar(event, time.monotonic() - begun))
            else:
                live.console.print(told(event), markup=False, highlight=False)

        yield show


def told(event: Event) -> str:
    """Return a task's event as a line of text for a person."""
    if event.type == PROGRESS:
        return printable(f"  {_share(event):4.0%}  {event.data.get('note') or ''}".rstrip())
    facts = ", ".join(f"{name} {value}" for name, value in event.data.items() if value not in (None, ""))
    return printable(f"  {event.type}  {facts}".rstrip())


def _share(event: Event) -> float:
    share = event.data.get("share")
    return min(1.0, max(0.0, float(share))) if isinstance(share, int | float) else 0.0


def _bar(event: Event, seconds: float) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = Table.grid(padding=(0, 2))
    note: Any = event.data.get("note") or ""
    state = Text(printable(f"{_share(event):.0%}  {seconds:.0f} s  {note}"))
    line.add_row(ProgressBar(total=1.0, completed=_share(event), width=BAR_WIDTH), state)
    return line


@contextmanager
def _drawn() -> Iterator[Show]:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True, soft_wrap=True), transient=True, refresh_per_second=8) as live:
        begun = time.monotonic()
        last: list[WorkflowRow] = []

        def show(row: WorkflowRow | None) -> None:
            if row is not None:
                last[:] = [row]
            if last:
                live.update(_picture(last[0], time.monotonic() - begun, silent=row is None))

        yield show


def _picture(row: WorkflowRow, seconds: float, *, silent: bool) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    head = Text(
        printable(f"{row.name}  {row.state.value}  {seconds:.0f} s  {row.ended} of {row.total}"),
        style="bold",
        no_wrap=False,
    )
    states = Text("  ").join(
        Text(f"{row.counts[state]} {state.value}", style=_STYLES.get(state, "dim"))
        for state in TaskState
        if row.counts.get(state)
    )
    line = Table.grid(padding=(0, 2))
    line.add_row(ProgressBar(total=max(1, row.total), completed=row.ended, width=BAR_WIDTH), states)
    parts: list[RenderableType] = [head, line]
    if silent:
        parts.append(Text(SILENCE, style="yellow"))
    return Group(*parts)
