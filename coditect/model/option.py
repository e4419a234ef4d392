"""The declaration of an option: its type, range, default and help text, written once for every face.

The options of a noun are a `TypedDict`, each field an `Annotated[type, Option(...)]`. From it come the keywords of the
Python method (`Unpack`), the check of a request (`read_options`), the body of the HTTP route (pydantic asks the
`Option`), the options of the command (`cli.terminal.options.takes`) and the table in the docs (`tests.docs`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from coditect.errors import InputError
from coditect.model import arguments
from coditect.model.duration import Duration, duration_text, milliseconds, seconds

LONGEST_OPTION_BYTES = 2_000


@dataclass(frozen=True, slots=True)
class Option:
    """The declaration of one option: help text, default, bounds and example.

    `low` and `high` bound a number, a duration, the length of a text in bytes, or the count of several texts.
    """

    help: str
    """A sentence without the default and the range, which each face adds."""
    default: Any = None
    """The value of an option that is not given; None for none."""
    low: Any = None
    high: Any = None
    example: Any = None
    short: str = ""
    """The letter of the command's option, such as `-k`."""

    def range(self, kind: Any) -> str:
        """Return the bounds of a number or a duration as text, such as `1 to 1,000` or `at most 1h`; else no text."""
        if kind is not int and kind != Duration:
            return ""
        low, high = (f"{bound:,}" if isinstance(bound, int) else bound for bound in (self.low, self.high))
        if low is None or high is None:
            return f"at least {low}" if low is not None else f"at most {high}" if high is not None else ""
        return f"{low} to {high}"

    def check(self, name: str, kind: Any, value: Any) -> Any:
        """Return a value of the option `name`, of the type `kind`.

        Raises:
            InputError: when the value has another type, or is out of range; names the option.
        """
        if allowed := choices(kind):
            if (chosen := str(value).lower()) not in allowed:
                arguments.refuse(name, f"There is no such {name}", value, f"one of {', '.join(allowed)}")
            value = chosen
        elif kind == Mapping[str, Any]:
            if not isinstance(value, Mapping):
                arguments.refuse(name, "This is no JSON object", value, 'such as {"team": "x"}')
        elif kind == Collection[str]:
            value = sorted(arguments.texts(name, value))
            arguments.whole(name, len(value), 0, self.high)
        elif kind is bool:
            arguments.yes_or_no(name, value)
        elif kind is int:
            arguments.whole(name, value, self.low, self.high)
        elif kind == Duration:
            self._check_span(name, value)
        elif isinstance(value, str) or str not in get_args(kind):  # else an expression, which its reader checks
            shortest = 0 if self.default == "" else 1
            arguments.text(name, value, shortest=shortest, longest=self.high or LONGEST_OPTION_BYTES)
        return value

    def _check_span(self, name: str, value: Any) -> None:
        span = seconds(arguments.span(name, value))
        if span < seconds(self.low or 0) or span > seconds(self.high or float("1e12")):
            arguments.refuse(name, f"This {name} is out of its range", value, self.range(Duration))

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema  # noqa: PLC0415 - only the HTTP API asks

        def check(value: Any, info: Any) -> Any:
            try:
                return None if value is None else self.check(info.field_name or "option", source, value)
            except InputError as error:
                sentence = f"{error.sentence}: {error.facts['fix']}"
                raise PydanticCustomError("option", "{sentence}", {"sentence": sentence}) from error

        return core_schema.with_info_plain_validator_function(check, metadata={"option": source})

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return json_schema(schema["metadata"]["option"], self)


def json_schema(kind: Any, option: Option) -> dict[str, Any]:
    """Return the JSON schema of an option of the type `kind`, as OpenAPI shows it."""
    described: dict[str, Any] = {"description": option.help}
    if allowed := choices(kind):
        described |= {"type": "string", "enum": list(allowed)}
    elif get_origin(kind) is Mapping:
        described["type"] = "object"
    elif get_origin(kind) is Collection:
        described |= {"type": "array", "items": {"type": "string"}, "maxItems": option.high}
    elif kind is bool:
        described |= {"type": "boolean"}
    elif kind is int:
        described |= {"type": "integer", "minimum": option.low, "maximum": option.high}
    else:
        described |= {"type": "string"} | ({"maxLength": option.high} if isinstance(option.high, int) else {})
        if limits := option.range(kind):
            described["description"] += f" {limits.capitalize()}."
    if option.default is not None:
        described["default"] = option.default
    if option.example is not None:
        described["examples"] = [option.example]
    return described


@lru_cache
def choices(kind: Any) -> tuple[str, ...]:
    """Return the texts that an option of the type `kind` may have: of a `Literal` or a `StrEnum`; else none."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    enums = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, StrEnum)]
    return tuple(member.value for enum in enums for member in enum)


@lru_cache
def options_of(spec: type) -> Mapping[str, tuple[Any, Option]]:
    """Return the type and the declaration of each option of a noun, by name, in the order of the source."""
    found: dict[str, tuple[Any, Option]] = {}
    for name, hint in get_type_hints(spec, include_extras=True).items():
        kind, *extras = get_args(hint) or (hint,)
        for extra in extras:
            if isinstance(extra, Option):
                found[name] = kind, extra
    return found


def read_options(noun: str, spec: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every option of a noun: what was given, checked, or the default.

    Raises:
        InputError: when an option is unknown or wrong; names it, and the nearest known one.
    """
    declared = options_of(spec)
    arguments.check_names(noun, given, declared)
    return {
        name: option.default if given.get(name) is None else option.check(name, kind, given[name])
        for name, (kind, option) in declared.items()
    }


def wire_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as JSON values for a request: a `timedelta` becomes its text."""
    return {
        name: duration_text(milliseconds(value)) if isinstance(value, timedelta) else value
        for name, value in given.items()
    }
