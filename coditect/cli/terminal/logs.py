"""Shows the log files of several programs on one terminal, each line prefixed with its program's name.

A terminal shows people's lines: what the programs print and log themselves, Coditect's warnings and errors in short,
and at the bottom the last error, until its program is ready again. Routine lines are in the files alone. In a pipe,
every line is shown as it is in the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.live import Live
from rich.text import Text

from coditect.telemetry.logs import PlainLines, record_of

LOOK_SECONDS = 0.1
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red")
LONGEST_LINE = 20_000
"""The number of bytes after which an unfinished log line is printed without its end."""
READY = "The agent is ready"
ROUTINE = frozenset({"coditect", "dispatcher", "mcp", "uvicorn"})
"""The packages whose lines below a warning are in the files alone."""
_TRACEBACK = "Traceback (most recent call last):"
_PLAIN = PlainLines()


@dataclass(slots=True)
class _Log:
    name: str
    path: Path
    colour: str
    at: int
    """The offset in bytes up to which the log file was read."""
    rest: bytes = b""
    """The unfinished last line of the file, as far as it was read."""
    in_traceback: bool = False
    """Whether the last line was one of a traceback that the program printed."""

    def lines(self) -> Iterator[str]:
        """Yield the file's lines since the last call; a file that became shorter is read from its start."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self.at:
                    self.at, self.rest = 0, b""
                file.seek(self.at)
                found = file.read()
        except FileNotFoundError:
            return
        self.at += len(found)
        *whole, self.rest = (self.rest + found).split(b"\n")
        if len(self.rest) > LONGEST_LINE:
            whole, self.rest = [*whole, self.rest], b""
        for line in whole:
            yield line.decode(errors="replace")


class Logs:
    """The log files of programs in one folder, printed to a terminal as they grow."""

    def __init__(self, folder: Path, console: Console) -> None:
        self._folder = folder
        self._console = console
        self._logs: list[_Log] = []
        self._over = Event()
        self._last_errors: dict[str, str] = {}
        """The last error of each program since it was ready, the latest one last."""
        self._live: Live | None = None

    def follow(self, names: Iterable[str]) -> None:
        """Add programs to those whose log lines `show` prints; lines that are already in their files are left out."""
        for name in names:
            path = self._folder / f"{name}.log"
            size = path.stat().st_size if path.exists() else 0
            self._logs = [*self._logs, _Log(name, path, COLOURS[len(self._logs) % len(COLOURS)], size)]

    def show(self) -> None:
        """Print the log lines that were written since the last call."""
        logs = self._logs
        width = max((len(log.name) for log in logs), default=0)
        for log in logs:
            name = Text(f"{log.name:<{width}} | ", style=log.colour)
            for raw in log.lines():
                for line in self._readable(log, raw) if self._console.is_terminal else [raw]:
                    self._console.print(name + Text.from_ansi(line), soft_wrap=True)
        if self._live is not None:
            self._live.update(self._status(), refresh=True)

    def say(self, text: str) -> None:
        """Print a line of the command's own among the programs' lines."""
        self._console.print(Text(text), soft_wrap=True)

    def _readable(self, log: _Log, line: str) -> list[str]:
        """Return the lines to show a person for a line of a log, none for routine, and note errors."""
        record = record_of(line)
        if record is None:
            if line.startswith("Error: ") or (log.in_traceback and line and not line[0].isspace()):
                self._note(log, line)
            starts_again = line.startswith((" ", _TRACEBACK)) or not line.strip()
            log.in_traceback = line.startswith(_TRACEBACK) or (log.in_traceback and starts_again)
            return [line]
        vars(record).pop("agent_id", None)  # the line has its name
        if record.getMessage() == READY:
            self._last_errors.pop(log.name, None)
        elif record.levelno >= logging.ERROR or hasattr(record, "error"):
            self._note(log, f"{record.getMessage()}: {getattr(record, 'error', '')}".rstrip(": "))
        is_routine = record.levelno < logging.WARNING and record.name.partition(".")[0] in ROUTINE
        return [] if is_routine and record.getMessage() != READY else _PLAIN.format(record).splitlines()

    def _note(self, log: _Log, error: str) -> None:
        self._last_errors.pop(log.name, None)
        self._last_errors[log.name] = f"{error}  ({log.path})"

    def _status(self) -> Text:
        name, error = next(reversed(self._last_errors.items()), ("", ""))
        return Text(
            f"Last error of {name}: {error}" if name else "", style="bold red", overflow="ellipsis", no_wrap=True
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Print new log lines in a background thread until the block ends."""
        thread = Thread(target=self._keep_showing, name="logs", daemon=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        with self._live or nullcontext():
            thread.start()
            try:
                yield
            finally:
                self._over.set()
                thread.join()
                self.show()

    def _keep_showing(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            self.show()
