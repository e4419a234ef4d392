"""Types that stand for a JSON Schema, so that a handler declares what was written elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


def described(schema: Mapping[str, Any]) -> Any:
    """Return a type that takes any JSON and has the given JSON Schema, which somebody else checks."""
    if not schema:
        return Any

    class Described:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
            return core_schema.any_schema()

        @classmethod
        def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
            return dict(schema)

    return Described
