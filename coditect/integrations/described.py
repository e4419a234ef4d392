"""Types that stand for a JSON Schema, and handlers that declare schemas which were written elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from coditect.agent.context import Context
from coditect.codec import WRITTEN_SCHEMA
from coditect.errors import InvalidTask, SetupError

Handler = TypeVar("Handler", bound=Callable[..., Any])
Check = Callable[[Any], None]
"""Raises InvalidTask for a value that does not fit a schema."""


def declaring(act: Handler, accepts: Any, returns: Any, check: Check | None = None) -> Handler:
    """Return a handler of `value` and `ctx` that declares JSON Schemas for its input and result; others count as none.

    Each input must pass the check.
    """
    act.__annotations__ = {"value": described(accepts, check), "ctx": Context, "return": described(returns)}
    return act


def check_of(schema: Mapping[str, Any], **facts: object) -> Check | None:
    """Return the check of values by a JSON Schema; None for an empty one.

    Raises:
        SetupError: when it is no valid JSON Schema, with the facts, or the extra `programs` is not installed.
    """
    if not schema:
        return None
    from coditect.integrations.json_schema import SchemaCheck  # noqa: PLC0415 - an optional dependency

    try:
        return SchemaCheck(schema).check
    except SetupError as error:
        error.facts |= facts
        raise


def described(schema: Any, check: Check | None = None) -> Any:
    """Return a type whose JSON Schema is the given one; it takes any JSON value that `check` does not refuse."""
    if not isinstance(schema, Mapping) or not schema:
        return Any
    core: CoreSchema = core_schema.any_schema()
    if check is not None:
        core = core_schema.no_info_after_validator_function(partial(_checked, check), core)

    class Described:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
            return core

    setattr(Described, WRITTEN_SCHEMA, dict(schema))
    return Described


def _checked(check: Check, value: Any) -> Any:
    try:
        check(value)
    except InvalidTask as error:
        raise PydanticCustomError("schema", "{problems}", {"problems": str(error)}) from error
    return value
