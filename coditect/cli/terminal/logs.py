"""Shows the log files of several programs on one terminal, each line prefixed with its program's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from rich.console import Console
from rich.text import Text

LOOK_SECONDS = 0.1
COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_red")
LONGEST_LINE = 20_000
"""The number of bytes after which an unfinished log line is printed without its end."""


@dataclass(slots=True)
class _Log:
    name: str
    path: Path
    colour: str
    at: int
    """The offset in bytes up to which the log file was read."""
    rest: bytes = b""
    """The unfinished last line of the file, as far as it was read."""

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

    def follow(self, names: Iterable[str]) -> None:
        """Add programs to those whose log lines `show` prints; lines that are already in their files are left out."""
        for name in names:
            path = self._folder / f"{name}.log"
            size = path.stat().st_size if path.exists() else 0
            self._logs = [*self._logs, _Log(name, path, COLOURS[len(self._logs) % len(COLOURS)], size)]

    def show(self) -> None:
        """Print the log lines that were written since the last call."""
        logs = self._logs
        width = max((len(one.name) for one in logs), default=0)
        for one in logs:
            for line in one.lines():
                name = Text(f"{one.name:<{width}} | ", style=one.colour)
                self._console.print(name + Text.from_ansi(line), soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Print new log lines in a background thread until the block ends."""
        thread = Thread(target=self._keep_showing, name="logs", daemon=True)
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
