"""Types that stand for a JSON Schema, so that a handler can declare a schema that was written elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from coditect.codec import WRITTEN_SCHEMA
from coditect.errors import InvalidTask


def described(schema: Mapping[str, Any], check: Callable[[Any], None] | None = None) -> Any:
    """Return a type whose JSON Schema is the given one; it takes any JSON value that `check` does not refuse."""
    if not schema:
        return Any
    core: CoreSchema = core_schema.any_schema()
    if check is not None:
        core = core_schema.no_info_after_validator_function(_checking(check), core)

    class Described:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
            return core

    setattr(Described, WRITTEN_SCHEMA, dict(schema))
    return Described


def _checking(check: Callable[[Any], None]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        try:
            check(value)
        except InvalidTask as error:
            raise PydanticCustomError("schema", "{problems}", {"problems": str(error)}) from error
        return value

    return checked
