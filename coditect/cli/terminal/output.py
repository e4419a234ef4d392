"""The output of commands: the answer on stdout, everything else on stderr.

`render` writes an answer: a JSON document for a program, or tables and fields, one below the other, for a person.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer


class Output(StrEnum):
    """The reader of an answer: a person (table) or a program (JSON)."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table for people, json for programs.")]


@dataclass(frozen=True, slots=True)
class TableView:
    """A table of an answer: drawn on a terminal, aligned plain text without colour in a pipe."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    empty: str = ""
    """What is said on stderr instead of a table without rows."""

    def write(self) -> None:
        """Write the table to stdout."""
        columns, cells = self.columns, [[readable(value) for value in row] for row in self.rows]
        if not cells:
            if self.empty:
                say(self.empty)
            return
        if sys.stdout.isatty():
            _draw(columns, cells)
            return
        widths = [max(len(row[column]) for row in [list(columns), *cells]) for column in range(len(columns))]
        for row in [[name.upper() for name in columns], *cells]:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@dataclass(frozen=True, slots=True)
class FieldsView:
    """One object of an answer, a line for each field; empty fields are left out."""

    fields: Mapping[str, object]

    def write(self) -> None:
        """Write the fields to stdout."""
        shown = {name: readable(value) for name, value in self.fields.items() if value not in (None, "", (), [], {})}
        width = max((len(name) for name in shown), default=0)
        for name, text in shown.items():
            first, *more = text.splitlines() or [""]
            typer.echo(f"{name.ljust(width)}  {first}")
            for line in more:
                typer.echo(" " * (width + 2) + line)


@dataclass(frozen=True, slots=True)
class Aside:
    """A line about an answer, which is no part of it."""

    text: str

    def write(self) -> None:
        """Write the line to stderr."""
        say(self.text)


View = TableView | FieldsView | Aside | str
"""A part of an answer for a person; a text is a line of its own."""


def render(output: Output, document: object, *views: View) -> None:
    """Write the answer: the document for a program, the views for a person."""
    if output is Output.JSON:
        write_json(document)
    else:
        show(*views)


def show(*views: View) -> None:
    """Write views, one below the other."""
    for view in views:
        if isinstance(view, str):
            typer.echo(view)
        else:
            view.write()


def say(text: str) -> None:
    """Print a line for the person at the terminal on stderr; it is never part of the answer."""
    typer.echo(text, err=True)


def agree(question: str, *, yes: bool) -> None:
    """Ask the person to confirm, unless `yes` is given.

    Raises:
        Abort: when the person says no.
    """
    if not yes:
        typer.confirm(question, abort=True, err=True)


def write_json(value: object) -> None:
    """Write the answer as one JSON document."""
    typer.echo(_document(value, indent=2))


def write_json_line(value: object) -> None:
    """Write one of many answers on a line of its own (JSON Lines)."""
    typer.echo(_document(value))
    sys.stdout.flush()


def _document(value: object, indent: int | None = None) -> str:
    """Return the value as JSON in UTF-8; text that is no valid UTF-8 is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)
    return text.encode(errors="backslashreplace").decode()


def _plain(value: object) -> object:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.upper(), overflow="fold", no_wrap=name == columns[0])  # an id is there to be copied
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def readable(value: object) -> str:
    """Return a value as text for people, without control characters."""
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.1f}"
        case Moment() if sys.stdout.isatty():
            return value.short
        case tuple() | list() | frozenset() | set():
            return ", ".join(sorted(str(one) for one in value)) or "-"
        case _:
            return printable(str(value))


def printable(text: str) -> str:
    """Return the text without control characters: text from others must not move the terminal's cursor."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


class Moment(str):
    """An instant in ISO 8601 and UTC, for programs and pipes; on a terminal a table shows its `short` form."""

    __slots__ = ()

    @property
    def short(self) -> str:
        """The instant by the machine's clock: only the time when it is today, else date and time."""
        try:
            local = datetime.fromisoformat(self).astimezone()
        except OverflowError:  # of the last day of the year 9999
            return str(self)
        return f"{local:%H:%M:%S}" if local.date() == datetime.now(local.tzinfo).date() else f"{local:%Y-%m-%d %H:%M}"


def instant(ms: int | None) -> str | None:
    """Return milliseconds since the epoch as an instant; as a number when no calendar has the instant."""
    if ms is None:
        return None
    try:
        return Moment(datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds"))
    except (OverflowError, ValueError, OSError):
        return str(ms)


def megabytes(size_bytes: int) -> str:
    """Return a size in megabytes as text with one decimal, e.g. `1.5 MB`."""
    return f"{size_bytes / 1_000_000:.1f} MB"
