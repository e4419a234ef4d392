"""Reports in answers of the control plane, whose fields are read by their annotations.

Fields that only a newer control plane knows are ignored; a field that a later version adds has a default.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Self, TypeVar, cast

from pydantic_core import ValidationError

from coditect.errors import InvalidTask

T = TypeVar("T")


class Row:
    """A report, which is a dataclass."""

    __slots__ = ()

    @classmethod
    def read(cls, row: object) -> Self:
        """Return the report of a row in an answer of the control plane.

        Raises:
            InvalidTask: when the row is no object, or lacks a field, or has one of another type.
        """
        return read_row(cls, row)


def read_row(kind: type[T], row: object) -> T:
    """Return a row in an answer of the control plane as a value of the dataclass `kind`, checked by its annotations.

    Raises:
        InvalidTask: when the row is no object, or lacks a field, or has one of another type.
    """
    try:
        report: T = _reader(cast("Any", kind))(row)
    except ValidationError as error:
        reason = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise InvalidTask("A row of the control plane is not what it should be", reason=reason[:200]) from error
    return report


@cache
def _reader(kind: Any) -> Callable[[object], Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415 - a dispatcher has rows and reads none: it does without

    return TypeAdapter(kind).validate_python
