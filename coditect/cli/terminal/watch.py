"""The option `--watch` of every list: the list is read again every two seconds until Ctrl-C.

On a terminal the table is drawn in place, and `q` ends it, too. In a pipe each look writes a block: a table and an
empty line, a line of JSON, or a YAML document.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.terminal.keys import quit_key
from coditect.cli.terminal.output import Output, View, render, say, show, write_json_line, write_yaml
from coditect.errors import CoditectError

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY_SECONDS = 2.0

WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Show it again every two seconds, until Ctrl-C.")]


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """The answer of a command: a document for JSON or YAML, tables and texts for a person, and notes for stderr."""

    document: object
    views: tuple[View, ...]
    notes: tuple[str, ...] = ()
    """Sentences about what could not be seen, for stderr with every format."""


Look = Callable[[], Coroutine[Any, Any, ShownAnswer]]
"""A function that reads what a command shows; called once, or for each refresh."""
Shown = Callable[[ShownAnswer, str], None]
"""A function that shows an answer, and as a sentence the error of a later read, empty without an error."""


def present(look: Look, output: Output, *, watch: bool, every_seconds: float = EVERY_SECONDS) -> None:
    """Fetch and print a command's answer once, or with `watch` every `every_seconds` until Ctrl-C, which is no error.

    Raises:
        CoditectError: of the first look; a later look that fails is reported on stderr and repeated.
    """
    if not watch:
        answer = run_loop(look())
        render(output, answer.document, *answer.views)
        for note in answer.notes:
            say(note)
        return
    live = output is Output.TABLE and sys.stdout.isatty()
    with suppress(KeyboardInterrupt), _drawn() if live else _written(output) as shown:
        run_loop(_keep_looking(look, shown, every_seconds, keys=live))


async def _keep_looking(look: Look, shown: Shown, every_seconds: float, *, keys: bool) -> None:
    last: ShownAnswer | None = None
    with quit_key() if keys else nullcontext():
        while True:
            try:
                last = await look()
                shown(last, "")
            except CoditectError as error:
                if last is None:
                    raise
                shown(last, f"{error.sentence}; it is tried again.")
            await asyncio.sleep(every_seconds)


@contextmanager
def _written(output: Output) -> Iterator[Shown]:
    """Yield a function that writes each answer as a block to stdout, and new notes and errors to stderr."""
    begun = False
    said: set[str] = set()

    def write(answer: ShownAnswer, trouble: str) -> None:
        nonlocal begun
        if trouble:
            say(trouble)
            return
        for note in answer.notes:
            if note not in said:
                say(note)
        said.update(answer.notes)
        match output:
            case Output.JSON:
                write_json_line(answer.document)
            case Output.YAML:
                write_yaml(answer.document, start="---\n")
            case Output.TABLE:
                show(*([""] if begun else []), *answer.views)
                sys.stdout.flush()
        begun = True

    yield write


@contextmanager
def _drawn() -> Iterator[Shown]:
    """Yield a function that draws each answer on the terminal in place of the one before."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    def draw(answer: ShownAnswer, trouble: str) -> None:
        views: list[RenderableType] = [Text(f"{datetime.now().astimezone():%H:%M:%S}  q ends", style="dim")]
        views += [Text(view) if isinstance(view, str) else view.picture() for view in answer.views]
        views += [Text(note, style="yellow") for note in (*answer.notes, trouble) if note]
        live.update(Group(*views), refresh=True)

    with Live(console=Console(), auto_refresh=False, vertical_overflow="ellipsis") as live:
        yield draw
