"""A generator of a small example value for a JSON Schema, as a start for people who have never used the capability.

An example has the required fields only, each as short as its bounds allow. An author's own `examples` come first. Where
no common text fits a pattern, the example holds the pattern itself, and the place is listed as unsure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coditect.errors import InputError
from coditect.integrations.pattern import matcher

_TEXTS = ("text", "a", "A", "0", "1.0.0", "a@example.org", "https://example.org/", "a.b", "/a", "AAA", "000", "a-0")
_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "date-time": "2030-01-01T00:00:00Z",
        "date": "2030-01-01",
        "time": "00:00:00Z",
        "duration": "PT1M",
        "uuid": "00000000-0000-4000-8000-000000000000",
        "uri": "https://example.org/",
        "email": "a@example.org",
        "ipv4": "192.0.2.1",
        "ipv6": "2001:db8::1",
        "ipvanyaddress": "192.0.2.1",
        "ipv4network": "192.0.2.0/24",
        "ipv6network": "2001:db8::/32",
        "ipvanynetwork": "192.0.2.0/24",
        "json-string": "{}",
    }
)


class Example:
    """An example value for one JSON Schema (`body`), and a list of its parts that may not fit the schema (`unsure`)."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._definitions = schema.get("$defs") or {}
        self.unsure: list[str] = []
        self.body = self._value(schema, "body", (), 0)

    def _value(self, schema: Any, at: str, within: tuple[str, ...], nth: int) -> Any:
        """Return an example value for a schema; a different number `nth` may give a different value.

        `within` are the definitions around the value.
        """
        schema = schema if isinstance(schema, Mapping) else {}  # true: anything
        if (name := _definition(schema)) is not None:
            if name in within:
                self.unsure.append(f"{at}: the schema requires itself")
                return None
            return self._value(self._definitions.get(name), at, (*within, name), nth)
        if "const" in schema:
            return schema["const"]
        if given := schema.get("examples") or schema.get("enum"):
            return given[nth % len(given)]
        if choices := schema.get("anyOf") or schema.get("oneOf"):
            return self._value(min(choices, key=lambda one: _rank(one, within)), at, within, nth)
        return self._typed(schema, at, within, nth)

    def _typed(self, schema: Mapping[str, Any], at: str, within: tuple[str, ...], nth: int) -> Any:
        match schema.get("type"):
            case "string":
                return self._text(schema, at, nth)
            case "integer" | "number":
                return self._number(schema, at, nth)
            case "boolean":
                return nth % 2 == 1
            case "null":
                return None
            case "array":
                return self._list(schema, at, within)
            case _:
                return self._object(schema, at, within, nth)

    def _object(self, schema: Mapping[str, Any], at: str, within: tuple[str, ...], nth: int) -> dict[str, Any]:
        fields, others = schema.get("properties") or {}, schema.get("additionalProperties")
        names = [str(name) for name in schema.get("required") or ()]
        names += [str(number) for number in range(len(names), schema.get("minProperties", 0))]
        return {name: self._value(fields.get(name, others), f"{at}.{name}", within, nth) for name in names}

    def _list(self, schema: Mapping[str, Any], at: str, within: tuple[str, ...]) -> list[Any]:
        first, rest = schema.get("prefixItems") or [], schema.get("items")
        shown = 1 if isinstance(rest, Mapping) and _rank(rest, within) < _ITSELF else 0
        size = max(len(first), schema.get("minItems", 0), min(shown, schema.get("maxItems", 1)))
        kinds = [*first, *[rest] * (size - len(first))]
        return [self._value(kind, f"{at}[{number}]", within, number) for number, kind in enumerate(kinds)]

    def _text(self, schema: Mapping[str, Any], at: str, nth: int) -> str:
        if (form := str(schema.get("format"))) in _FORMATS:
            return _FORMATS[form]
        least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        pattern = str(schema.get("pattern") or "")
        texts = [f"{text}{number or ''}" for text in _TEXTS for number in range(nth + 1)]
        texts += [text.rjust(least, text[0]) for text in texts] + [str(number) for number in range(nth + 1)] + [""]
        fitting = [text for text in texts if least <= len(text) <= most and _matches(pattern, text)]
        if fitting:
            return fitting[nth % len(fitting)]
        self.unsure.append(f"{at}: a text that matches {pattern}")
        return pattern

    def _number(self, schema: Mapping[str, Any], at: str, nth: int) -> int | float:
        """Return a small number, or one near a bound, that the schema allows; if none is found, note that in `unsure`.

        Another `nth` gives another number where several fit.
        """
        low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
        high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
        bounds = [bound for bound in (low, high) if math.isfinite(bound)]
        step = schema.get("multipleOf") or 1
        starts = [step, 0, *(math.ceil(bound / step) * step for bound in bounds), *bounds, sum(bounds) / 2]
        steps = [sign * number * step for number in range(nth + 2) for sign in (1, -1)]
        fitting = dict.fromkeys(
            int(one) if schema["type"] == "integer" else one
            for one in (start + more for start in starts for more in steps)
            if _fits(schema, one)
        )
        if fitting:
            return list(fitting)[nth % len(fitting)]
        self.unsure.append(f"{at}: a number within its bounds")
        return step


_ITSELF = 3


def _definition(schema: Mapping[str, Any]) -> str | None:
    return str(schema["$ref"]).rpartition("/")[2] if "$ref" in schema else None


def _rank(schema: Mapping[str, Any], within: tuple[str, ...]) -> int:
    """Return the rank of one of several alternative schemas; the alternative with the lowest rank is used.

    A plain schema ranks first, then a definition, then null, and last a definition that contains the alternative.
    """
    name = _definition(schema)
    if name is not None:
        return _ITSELF if name in within else 1
    return 2 if schema.get("type") == "null" else 0


def _fits(schema: Mapping[str, Any], number: float) -> bool:
    return bool(
        schema.get("minimum", -math.inf) <= number <= schema.get("maximum", math.inf)
        and schema.get("exclusiveMinimum", -math.inf) < number < schema.get("exclusiveMaximum", math.inf)
        and number % schema.get("multipleOf", 1 if schema["type"] == "integer" else number or 1) == 0
    )


def _matches(pattern: str, text: str) -> bool:
    try:
        return matcher(pattern)(text)
    except InputError:  # a dialect with look-around
        return False
