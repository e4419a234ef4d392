"""What several commands take: JSON as it is, in a file or on stdin; labels, `--wait`, `--watch`, the user's name."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from getpass import getuser
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, get_origin, get_type_hints

import typer

from coditect.aio.loop import run_loop
from coditect.cli.terminal.output import Output, OutputOption, View, render, render_next, say
from coditect.errors import CoditectError, InputError, InvalidTask, TooLarge
from coditect.model.duration import seconds
from coditect.model.option import Option, choices, options_of
from coditect.wire.json import check_text, loads
from coditect.wire.tasks import MAX_BODY_BYTES

if TYPE_CHECKING:
    from rich.console import RenderableType


LimitOption = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="Most rows to list.")]


def only_with(context: typer.Context, partners: Collection[str], *options: str) -> None:
    """Refuse options that add something to others, all by their parameters' names, when none of those is given.

    Raises:
        BadParameter: names the option, and those that it goes with.
    """

    def given(name: str) -> bool:
        source = context.get_parameter_source(name)
        return source is not None and source.name == "COMMANDLINE"

    if not any(map(given, partners)):
        flags = {parameter.name: max(parameter.opts, key=len) for parameter in context.command.params}
        for name in filter(given, options):
            others = " or ".join(flags[partner] for partner in partners)
            raise typer.BadParameter(f"{flags[name]} does something with {others} only")


def _acting_name(named: str) -> str:
    """Return the name that `--by` gives, by default that of the user of this machine; `unknown` if it has none."""
    try:
        return named or getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return "unknown"


ByOption = Annotated[
    str, typer.Option("--by", callback=_acting_name, help="Who says so. Default: the user of this machine.")
]


def read_body(argument: str, *, binary: bool = False) -> bytes:
    """Return a command's argument as bytes: its text, the file of `@file`, or stdin for `-`; only JSON unless `binary`.

    `binary` takes bytes of any kind.

    Raises:
        InvalidTask: when the text is not JSON, or the file cannot be read.
        TooLarge: when a file, or stdin, is over the inline limit.
    """
    if argument == "-":
        body = _read_most(sys.stdin.buffer)
    elif argument.startswith("@"):
        path = Path(argument[1:])
        try:
            with path.open("rb") as file:
                body = _read_most(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidTask("The file of the body cannot be read", path=path, reason=reason) from error
    else:
        body = argument.encode(errors="surrogateescape")  # as the bytes that were given
    if not binary:
        _check_json(body)
    return body


def _check_json(body: bytes) -> None:
    try:
        check_text(body)
    except InvalidTask as error:
        error.facts["fix"] = """write a text in quotes of JSON inside of the shell's: '"Ada"'; a file is @FILE"""
        raise


def labels_of(options: Sequence[str] | None) -> dict[str, str]:
    """Return the labels that the options `--label NAME=VALUE` give.

    Raises:
        InputError: when an option has no value, or a name is given twice.
    """
    labels: dict[str, str] = {}
    for option in options or ():
        name, equals, value = option.partition("=")
        if not equals or name in labels:
            raise InputError("A label is a name and its value, once", given=option[:80], fix="--label team=x")
        labels[name] = value
    return labels


def _read_most(file: BinaryIO) -> bytes:
    body = file.read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise TooLarge("The body is over the inline limit", limit=MAX_BODY_BYTES)
    return body


QUIT = b"q"


@contextmanager
def quit_key() -> Iterator[None]:
    """Make the key `q` work as Ctrl-C does inside the block; without a terminal do nothing."""
    if not sys.stdin.isatty():
        yield
        return
    import termios  # POSIX has it, and a pipe needs none
    import tty

    terminal, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(terminal)

    def pressed() -> None:
        keys = os.read(terminal, 64)
        if not keys or QUIT in keys.lower():  # no key at all: the terminal is gone
            signal.raise_signal(signal.SIGINT)

    tty.setcbreak(terminal)
    loop.add_reader(terminal, pressed)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def checked(wait: str | None) -> str | None:
    """Return an option such as `--wait`, if given, after a check that it is a duration; a typer callback.

    Raises:
        InputError: when the text is no duration.
    """
    if wait is not None:
        seconds(wait)
    return wait


@contextmanager
def going_on(sentence: str) -> Iterator[None]:
    """Print a sentence when Ctrl-C ends the block: which work goes on, and how to see it."""
    try:
        yield
    except asyncio.CancelledError:
        say(sentence)
        raise


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
        render_next(output, answer.document, *([""] if begun else []), *answer.views)
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


def presented(look: Callable[..., Coroutine[Any, Any, ShownAnswer]]) -> Callable[..., None]:
    """Return a command that prints the answer of an async function, with `--output` and `--watch` behind its options.

    With `--watch` the function is called again for each refresh.
    """

    def command(*, output: Output, watch: bool, **given: Any) -> None:
        present(partial(look, **given), output, watch=watch)

    shared = {"output": (OutputOption, Output.TABLE), "watch": (WatchOption, False)}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in shared.items()
    ]
    return _signed(command, look, [*_own_parameters(look), *added])


def takes(
    spec: type, *, before: str = "output", complete: Mapping[str, Callable[..., Any]] = MappingProxyType({})
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that gives a command, in place of its `**options`, the declared options of a noun.

    They stand before the parameter `before`. The command gets those that were given; the declaration has the rest.
    `complete` has the functions with which a shell completes the values of some options.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared, parameters = options_of(spec), _own_parameters(command)
        place = next(place for place, parameter in enumerate(parameters) if parameter.name == before)
        parameters[place:place] = [
            _parameter(name, kind, option, complete.get(name)) for name, (kind, option) in declared.items()
        ]

        def run(**given: Any) -> None:
            for name in [name for name in declared if given[name] in (None, [])]:
                del given[name]
            for name, (kind, _) in declared.items():
                if name in given and get_origin(kind) is Mapping:
                    given[name] = loads(read_body(given[name]))
            command(**given)

        return _signed(run, command, parameters)

    return decorate


def _own_parameters(command: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of a command, all but `**options`, as Typer reads them."""
    hints, keyword = get_type_hints(command, include_extras=True), inspect.Parameter.KEYWORD_ONLY
    return [
        parameter.replace(kind=keyword, annotation=hints[parameter.name])
        for parameter in inspect.signature(command).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]


def _signed(
    run: Callable[..., None], command: Callable[..., Any], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    """Return `run` with a command's name and text, and with parameters for Typer."""
    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _parameter(name: str, kind: Any, option: Option, complete: Callable[..., Any] | None) -> inspect.Parameter:
    """Return a declared option as a parameter of a command: a flag, a whole number, a text or several."""
    words = [option.help]
    if get_origin(kind) is Mapping:
        words.append("A JSON object, @FILE or -.")
    if limits := option.range(kind):
        words.append(f"{limits.capitalize()}.")
    if option.example is not None:
        words.append(f"E.g. {option.example if isinstance(option.example, str) else option.example[0]}.")
    if option.default and kind is not bool:
        words.append(f"Default: {option.default}.")
    plain: Any = list[str] if get_origin(kind) is Collection else kind if kind in (bool, int) else str
    if allowed := choices(kind):
        plain = Literal[allowed]
    flag = f"--{name.replace('_', '-')}"
    names = [f"{flag}/--no-{name}" if option.default is True else flag, *filter(None, [option.short])]
    shown = typer.Option(*names, help=" ".join(words), show_default=False, autocompletion=complete)
    default = option.default if kind is bool else None
    annotation: Any = Annotated[plain if kind is bool else plain | None, shown]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
