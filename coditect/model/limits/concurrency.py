"""Limits on concurrency as values: how many tasks of a capability with the same key may run at once in the fleet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coditect.errors import InvalidTask
from coditect.model import arguments

KEY_LOCKS = "concurrency:"
"""The prefix of the names of the locks that limit the tasks with one key; each grant belongs to one execution."""
MOST_TOGETHER = 1_000
LONGEST_TEMPLATE_BYTES = 500
LONGEST_KEY_BYTES = 300
_FIELD = re.compile(r"\{input((?:\.[A-Za-z0-9_-]+)*)\}")
_FIX = 'such as ("{input.repo}", 1): a template of the key, and how many tasks with one key may run at once'


@dataclass(frozen=True, slots=True)
class ConcurrencyLimit:
    """A bound on the tasks of one capability that run at once in the whole fleet for each key.

    Raises:
        InputError: for a template or number out of its bounds.
    """

    template: str
    """The text of the key, in which `{input}` or `{input.repo}` stands for the task's input or a field of it."""
    most: int

    def __post_init__(self) -> None:
        template = arguments.text("concurrency", self.template, shortest=1, longest=LONGEST_TEMPLATE_BYTES)
        if set("{}") & set(_FIELD.sub("", template)):
            arguments.refuse("concurrency", "A key's template has only fields of the input in braces", template, _FIX)
        arguments.whole("concurrency", self.most, 1, MOST_TOGETHER)

    def key(self, given: Any) -> str:
        """Return the key of a task with this input; a long key is replaced by its hash and its first 40 characters.

        Raises:
            InvalidTask: when the input lacks a field of the template, or the field is no text, number or truth value.
        """
        key = _FIELD.sub(lambda found: _text(given, found[1].split(".")[1:]), self.template)
        raw = key.encode(errors="surrogatepass")
        if len(raw) <= LONGEST_KEY_BYTES:
            return key
        return hashlib.sha256(raw).hexdigest() + key[:40]


def _text(given: Any, path: list[str]) -> str:
    value, at = given, "input"
    for name in path:
        at += f".{name}"
        if not isinstance(value, Mapping) or name not in value:
            raise InvalidTask(
                "The input lacks a field of the key by which its capability limits concurrency",
                field=at,
                fix="submit the task with the field",
            )
        value = value[name]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise InvalidTask(
        "A field of the key by which its capability limits concurrency is no text, number or truth value",
        field=at,
        given=type(value).__name__,
        fix="submit the task with a text in the field",
    )


def concurrency_of(given: tuple[str, int] | None) -> ConcurrencyLimit | None:
    """Return the ConcurrencyLimit of a pair: the template of a key, and the most tasks at once; None stays None.

    Raises:
        InputError: when the value is no pair of a template and a whole number.
    """
    if given is None:
        return None
    if not isinstance(given, tuple) or len(given) != 2:
        arguments.refuse("concurrency", "A limit on concurrency is a pair", given, _FIX)
    return ConcurrencyLimit(*given)
