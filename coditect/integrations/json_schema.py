"""JSON Schemas of capabilities as checks of values that a stranger wrote: a task's input, or a model's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coditect.errors import InvalidTask, SetupError, missing_extra

try:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from jsonschema.protocols import Validator
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable
except ImportError as _missing:
    raise missing_extra("programs") from _missing

MOST_TOLD = 5
_LONGEST_PROBLEM = 300


class SchemaCheck:
    """The check of values by one JSON Schema; references to other documents are never fetched."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Prepare the check of values by a JSON Schema, of draft 2020-12 unless `$schema` names another.

        Raises:
            SetupError: when it is no valid JSON Schema.
        """
        kind = validator_for(schema, default=Draft202012Validator)
        try:
            kind.check_schema(dict(schema))
        except SchemaError as error:
            raise SetupError("This is no JSON Schema", reason=error.message[:_LONGEST_PROBLEM]) from error
        self._validator: Validator = kind(dict(schema), registry=Registry())

    def check(self, value: Any) -> None:
        """Raise an error unless a value fits the schema.

        Raises:
            InvalidTask: when the value does not fit; the error has the first five problems with their places.
        """
        try:
            problems = [
                f"{one.json_path}: {one.message}"[:_LONGEST_PROBLEM]
                for one, _ in zip(self._validator.iter_errors(value), range(MOST_TOLD), strict=False)
            ]
        except (Unresolvable, RecursionError) as error:
            raise InvalidTask("The schema cannot be applied", reason=str(error)[:_LONGEST_PROBLEM]) from error
        if problems:
            raise InvalidTask("The value does not fit the schema", errors=problems)
