"""Placeholders for values that exist only when a workflow runs: the results of nodes and of expressions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self

from coditect.errors import InputError

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PATH = re.compile(r"""[A-Za-z_"][^|&!<>=(){}`*,?@]*""")
"""A plain path such as `results.a[0]."b c"`; a part of anything else is taken of the whole, in parentheses."""


@dataclass(frozen=True, slots=True)
class From:
    """A placeholder in an input for the result of a JMESPath expression over `input`, `results` and `states`.

    `From("input")["chapters"][0]` is a part of it.
    """

    expression: str

    def __getitem__(self, key: str | int) -> Self:
        """Return a placeholder for a field or an element of this placeholder's value."""
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise InputError("A part of a later value is named by a text or a number", given=repr(key)[:80])
        whole = self.expression if _PATH.fullmatch(self.expression) else f"({self.expression})"
        if isinstance(key, int):
            return replace(self, expression=f"{whole}[{key}]")
        return replace(self, expression=f"{whole}.{key if _WORD.fullmatch(key) else json.dumps(key)}")

    def __iter__(self) -> NoReturn:
        fix = "give it to `flow.map`, which runs a task for each element"
        raise InputError("Nobody can look through a value before the workflow runs", given=self.expression, fix=fix)


@dataclass(frozen=True, slots=True)
class NodeResult(From):
    """A placeholder for a node's result; a later node whose input holds it comes after that node."""

    node: Any
    """The node whose result it is."""
