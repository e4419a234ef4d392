"""How a setting is declared, once: its default, its range, its help text, and who meets it.

A class of settings is a frozen dataclass whose fields are made by `setting`. `Declared.read` reads all of them from the
environment, and `Declared.variables` lists them for the documentation and for tests. An empty variable counts as
missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from ipaddress import ip_address
from typing import ClassVar, Generic, TypeVar
from urllib.parse import urlsplit

from coditect.errors import SetupError

Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)
Own = TypeVar("Own", bound="Declared")
Parse = Callable[[str, str], Value]
"""A function of a variable's name and its text; it returns the value or raises SetupError."""


class Group(StrEnum):
    """The readers for whom a setting is documented: all users, operators of a fleet, or experts."""

    USER = "user"
    OPERATOR = "operator"
    EXPERT = "expert"


@dataclass(frozen=True, slots=True)
class Kind(Generic[Value_co]):
    """How the text of a variable becomes a value, and which texts are allowed, in words."""

    parse: Callable[[str, str], Value_co]
    range: str = ""
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of a setting: its environment variable, default, range, help text and group."""

    variable: str
    default: str
    """The default as the documentation shows it."""
    kind: Kind[object]
    help: str
    """What the setting does, as Markdown on the page docs/operations.md."""
    group: Group


def setting(
    default: Value,
    kind: Kind[Value],
    help: str,  # noqa: A002 - as in argparse and Typer
    group: Group = Group.OPERATOR,
    *,
    secret: bool = False,
    variable: str = "",
    shown: str = "",
) -> Value:
    """Declare a setting as a field of a dataclass.

    Args:
        default: The value while the variable is missing.
        kind: How the text is read and checked.
        help: What the setting does.
        group: Who meets it.
        secret: Whether `repr` and logs must not show the value.
        variable: The environment variable; by default the class's prefix and the field's name.
        shown: The default in words, for a default that is None but means something else.
    """
    shown = shown or ("none" if default is None else f"`{default_text(default)}`")
    declared = Setting(variable, shown, kind, help, group)
    return field(default=default, repr=not secret, metadata={"declared": declared})


def default_text(value: object) -> str:
    """Return a default as a user writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


class Declared:
    """The base of a class of settings."""

    __slots__ = ()
    PREFIX: ClassVar[str] = "CODITECT_"

    @classmethod
    def variables(cls) -> Iterator[tuple[str, Setting]]:
        """Yield the name of each field that is a setting, and its declaration with the name of its variable."""
        for declared in fields(cls):  # type: ignore[arg-type]  # each subclass is a dataclass
            if found := declared.metadata.get("declared"):
                variable = found.variable or cls.PREFIX + declared.name.upper()
                yield declared.name, Setting(variable, found.default, found.kind, found.help, found.group)

    @classmethod
    def read(cls: type[Own], values: Mapping[str, str]) -> Own:
        """Read the settings from environment variables, given as a mapping.

        Raises:
            SetupError: for a wrong value; the error names the variable and what to write, and shows no secret.
        """
        texts = {name: (found, values.get(found.variable)) for name, found in cls.variables()}
        return cls(**{name: found.kind.parse(found.variable, text) for name, (found, text) in texts.items() if text})


# The kinds


def whole(low: int, high: int) -> Kind[int]:
    """Return the kind of whole numbers from `low` to `high`."""

    def parse(variable: str, text: str) -> int:
        found = _number(variable, text, low, high)
        if found != int(found):
            raise SetupError(
                "A setting is a whole number", variable=variable, given=text, fix=f"{variable}={found:.0f}"
            )
        return int(found)

    return Kind(parse, f"{low} to {high}", low, high)


def number(low: float, high: float) -> Kind[float]:
    """Return the kind of numbers from `low` to `high`."""
    return Kind(lambda variable, text: _number(variable, text, low, high), f"{low:.10g} to {high:.10g}", low, high)


def _number(variable: str, text: str, low: float, high: float) -> float:
    fix = f"{variable}=NUMBER, from {low:.10g} to {high:.10g}"
    try:
        found = float(text)
    except ValueError as error:
        raise SetupError("A setting is a number", variable=variable, given=text, fix=fix) from error
    if not low <= found <= high:
        raise SetupError("A setting is outside its range", variable=variable, given=text, low=low, high=high, fix=fix)
    return found


def choice(*words: str) -> Kind[str]:
    """Return the kind of a few words, in any case."""

    def parse(variable: str, text: str) -> str:
        for word in words:
            if text.lower() == word.lower():
                return word
        fix = f"{variable}={words[0]}"
        raise SetupError("A setting is one of a few words", variable=variable, given=text, allowed=words, fix=fix)

    return Kind(parse, ", ".join(words))


def member(word: str, *, among: tuple[str, ...]) -> Kind[bool]:
    """Return the kind of a list of words, read as whether it has one of them."""

    def parse(variable: str, text: str) -> bool:
        listed = {part.strip().lower() for part in text.split(",")} - {""}
        if unknown := listed - {*among}:
            fix = f"{variable}={','.join(among)}, or some of these words"
            raise SetupError("A setting lists unknown words", variable=variable, given=sorted(unknown)[0], fix=fix)
        return word in listed

    return Kind(parse, f"some of {', '.join(among)}")


def printable(
    sentence: str, *, shortest: int = 1, fix: str = "printable ASCII, without spaces and line ends"
) -> Kind[str]:
    """Return the kind of secrets that are one word of printable ASCII; an error never shows the text."""

    def parse(variable: str, text: str) -> str:
        if len(text) < shortest or not (text.isascii() and text.isprintable()) or " " in text:
            raise SetupError(sentence, variable=variable, fix=fix)
        return text

    return Kind(parse, f"{shortest} characters or more" if shortest > 1 else "")


def http_url(example: str, *, within: str = "") -> Kind[str]:
    """Return the kind of http and https URLs, which may have to contain a text."""

    def parse(variable: str, text: str) -> str:
        fix = f"{variable}={example}"
        try:
            address = urlsplit(text)
            known = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError:
            known = False
        if not known or not text.isprintable() or " " in text:
            raise SetupError("A setting is a URL", variable=variable, **_given(text), fix=fix)
        if within not in text:
            sentence = f"A setting is a URL with {within} in it"
            raise SetupError(sentence, variable=variable, **_given(text), fix=fix)
        return text

    return Kind(parse)


def _given(text: str) -> dict[str, str]:
    """Return the fact that shows a wrong address; none if a password may be in it."""
    return {} if "@" in text else {"given": text}


def _flag(variable: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        fix = f"{variable}=true, or {variable}=false"
        raise SetupError("A setting is true or false", variable=variable, given=text, fix=fix)
    return text.lower() in ("true", "1", "yes")


def _host_names(variable: str, text: str) -> str:
    for host in filter(None, map(str.strip, text.split(","))):
        if not _is_host(host):
            given = {} if "@" in text else {"given": host}
            fix = f"{variable}=api.example.com,10.0.0.7: no scheme, port or path"
            raise SetupError("A setting lists names of hosts, and nothing else", variable=variable, **given, fix=fix)
    return text.strip(", ")


_HOST = re.compile(r"[\w*?\[\]!.-]{1,253}")
"""A name, a pattern of names, or an IPv4 address."""


def _is_host(text: str) -> bool:
    if _HOST.fullmatch(text):
        return True
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False


TEXT: Kind[str] = Kind(lambda _, text: text)
FLAG: Kind[bool] = Kind(_flag, "true, false")
HOST_NAMES: Kind[str] = Kind(_host_names, "names or patterns, separated by commas")
