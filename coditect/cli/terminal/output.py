"""The output of commands: an answer goes to stdout, and all other text to stderr.

`render` writes an answer: a JSON or YAML document for a program, or tables and fields, one below the other, for a
person. Colors are for a terminal only, and not with NO_COLOR set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coditect.errors import needing
from coditect.settings.addresses import printable

if TYPE_CHECKING:
    from rich.console import RenderableType


class Output(StrEnum):
    """The output format of a command: tables for a person, or JSON or YAML for a program."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


LINE_ENDS = "\n\t"
"""The control characters that text for a person keeps; a table's cell in a pipe keeps none."""
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="table for people, json or yaml for programs.")]


@dataclass(frozen=True, slots=True)
class TableView:
    """A table of a command's answer: drawn on a terminal, aligned plain text without color in a pipe."""

    columns: Sequence[str]
    rows: Iterable[Sequence[object]]
    empty: str = ""
    """The text that stderr shows instead of a table without rows."""

    def write(self) -> None:
        """Write the table to stdout; a table without rows writes its text for that case to stderr instead."""
        columns, cells = self.columns, self._cells()
        if not cells:
            if self.empty:
                say(self.empty)
            return
        if sys.stdout.isatty():
            from rich.console import Console

            Console().print(_drawn(columns, cells))
            return
        cells = [[printable(cell) for cell in row] for row in cells]
        widths = [max(len(row[column]) for row in [list(columns), *cells]) for column in range(len(columns))]
        for row in [[name.upper() for name in columns], *cells]:
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def picture(self) -> RenderableType:
        """Return the table as drawn on a terminal, or, if it has no rows, the text that stands for an empty table."""
        cells = self._cells()
        return _drawn(self.columns, cells) if cells else self.empty

    def _cells(self) -> list[list[str]]:
        return [[readable(value) for value in row] for row in self.rows]


@dataclass(frozen=True, slots=True)
class FieldsView:
    """An object of a command's answer, printed as a line for each field that is not empty."""

    fields: Mapping[str, object]

    def write(self) -> None:
        """Write the names and values of the fields to stdout, aligned."""
        for line in self._lines():
            typer.echo(line)

    def picture(self) -> RenderableType:
        """Return the names and values of the fields as drawn on a terminal."""
        from rich.text import Text

        return Text("\n".join(self._lines()))

    def _lines(self) -> Iterator[str]:
        shown = {name: readable(value) for name, value in self.fields.items() if value not in (None, "", (), [], {})}
        width = max((len(name) for name in shown), default=0)
        for name, text in shown.items():
            first, *more = text.splitlines() or [""]
            yield f"{name.ljust(width)}  {first}"
            for line in more:
                yield " " * (width + 2) + line


@dataclass(frozen=True, slots=True)
class Aside:
    """A remark for the person at the terminal, which goes to stderr and is no part of the answer."""

    text: str

    def write(self) -> None:
        """Write the remark to stderr."""
        say(self.text)

    def picture(self) -> RenderableType:
        """Return the remark as drawn on a terminal."""
        from rich.text import Text

        return Text(printable(self.text, keep=LINE_ENDS), style="dim")


View = TableView | FieldsView | Aside | str
"""A part of an answer for a person; a plain string is printed as a line."""


def render(output: Output, document: object, *views: View) -> None:
    """Write a command's answer: the document as JSON or YAML, or the tables and texts (views) for a person."""
    match output:
        case Output.JSON:
            write_json(document)
        case Output.YAML:
            write_yaml(document)
        case Output.TABLE:
            show(*views)


def render_next(output: Output, document: object, *views: View) -> None:
    """Write one of several answers: as a line of JSON, as a YAML document of its own, or as its views, and flush."""
    match output:
        case Output.JSON:
            write_json_line(document)
        case Output.YAML:
            write_yaml(document, start="---\n")
        case Output.TABLE:
            show(*views)
            sys.stdout.flush()


def show(*views: View) -> None:
    """Print the tables and texts of a command's answer, one below the other; remarks go to stderr."""
    for view in views:
        if isinstance(view, str):
            typer.echo(printable(view, keep=LINE_ENDS))
        else:
            view.write()


def say(text: str) -> None:
    """Print a line to stderr for the person at the terminal, outside of the command's answer.

    While rich draws a live display, it puts an object in the place of `sys.stderr` that prints above the display.
    `typer.echo` would write to the terminal itself, and the display would erase the line.
    """
    sys.stderr.write(printable(text, keep=LINE_ENDS) + "\n")
    sys.stderr.flush()


def agree(question: str, *, yes: bool) -> None:
    """Ask the person at the terminal to confirm, and raise Abort if the answer is no; do nothing if `yes` is true.

    Raises:
        Abort: when the person says no.
    """
    if not yes:
        typer.confirm(question, abort=True, err=True)


def json_text(value: object) -> str:
    """Return a value as indented JSON text for a person."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def write_json(value: object) -> None:
    """Write a value to stdout as one indented JSON document."""
    typer.echo(_document(value, indent=2))


def write_json_line(value: object) -> None:
    """Write a value to stdout as one line of JSON (JSON Lines) and flush."""
    typer.echo(_document(value))
    sys.stdout.flush()


def write_yaml(value: object, *, start: str = "") -> None:
    """Write a value to stdout as one YAML document, with the text `start` before it, and flush.

    Raises:
        SetupError: when the extra `workflow`, which has PyYAML, is not installed.
    """
    with needing("workflow"):
        import yaml
    dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    plain = json.loads(_document(value, unwritable="replace"))
    text = yaml.dump(plain, Dumper=dumper, sort_keys=False, allow_unicode=True, width=110)
    typer.echo(f"{start}{text}", nl=False)
    sys.stdout.flush()


def _document(value: object, indent: int | None = None, *, unwritable: str = "backslashreplace") -> str:
    """Return a value as JSON text; `unwritable` names the error handler for characters that UTF-8 cannot encode."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)
    return text.encode(errors=unwritable).decode()


def _plain(value: object) -> object:
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _drawn(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name.upper(), overflow="fold", no_wrap=name == columns[0])  # an id is there to be copied
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    return table


def readable(value: object) -> str:
    """Return a value as text for a table cell: `-` for None, yes or no for a bool, JSON for an object, ..."""
    match value:
        case None | bool():
            return {None: "-", True: "yes", False: "no"}[value]
        case float():
            return f"{value:.1f}"
        case Moment() if sys.stdout.isatty():
            return value.short
        case Mapping():
            return printable(json.dumps(dict(value), ensure_ascii=False, default=str))
        case tuple() | list() | frozenset() | set():
            return printable(", ".join(sorted(str(item) for item in value)), keep=LINE_ENDS) or "-"
        case _:
            return printable(str(value), keep=LINE_ENDS)


class Moment(str):
    """An instant as ISO 8601 text in UTC, which a table on a terminal shows in its `short` form."""

    __slots__ = ()

    @property
    def short(self) -> str:
        """The instant in local time: only the time for an instant of today, else date and time."""
        try:
            local = datetime.fromisoformat(self).astimezone()
        except OverflowError:  # of the last day of the year 9999
            return str(self)
        return f"{local:%H:%M:%S}" if local.date() == datetime.now(local.tzinfo).date() else f"{local:%Y-%m-%d %H:%M}"


def instant(ms: int | None) -> str | None:
    """Return milliseconds since the epoch as ISO 8601 text, or digits if no date can express them; None for None."""
    if ms is None:
        return None
    try:
        return Moment(datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds"))
    except (OverflowError, ValueError, OSError):
        return str(ms)


def megabytes(size_bytes: int) -> str:
    """Return a size in megabytes as text with one decimal, e.g. `1.5 MB`."""
    return f"{size_bytes / 1_000_000:.1f} MB"
