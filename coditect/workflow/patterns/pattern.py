"""A pattern as a frozen value: a workflow document with placeholders, and the parameters that fill them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
)

from coditect.errors import InputError
from coditect.workflow import fields
from coditect.workflow.expressions import parse
from coditect.workflow.template import MOST_LEVELS

MOST_REPEATED = 100
"""The largest number of nodes that one node of a pattern may become."""
MOST_TOLD = 10
"""The largest number of problems that one error tells."""


class ParameterType(StrEnum):
    """The type of a pattern's parameter, which decides which values it takes and where they may be inserted."""

    CAPABILITY = "capability"
    CAPABILITIES = "capabilities"
    COUNT = "count"
    """A whole number from 1 to 100."""
    SHARE = "share"
    """A number from 0 to 1."""
    EXPRESSION = "expression"
    STEPS = "steps"
    """A list of objects with `do`, a capability, and `undo`, the capability that compensates it."""
    JSON = "json"


class _PatternPart(BaseModel):
    """The base of all objects in the file of a workflow pattern; it refuses unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _capability(given: object) -> str:
    try:
        return fields.capability(given)
    except InputError as error:
        raise ValueError(str(error)) from error


def _expression(given: str) -> str:
    try:
        parse(given)
    except InputError as error:
        raise ValueError(str(error)) from error
    return given


_Capability = Annotated[str, BeforeValidator(_capability)]
_Word = Annotated[str, Field(max_length=60, pattern=r"^[a-z][a-z0-9_]*$")]


class _Step(_PatternPart):
    """A step of a saga: the capability that does it, and the capability that undoes it."""

    do: _Capability
    undo: _Capability


_READERS: Mapping[ParameterType, TypeAdapter[Any]] = {
    ParameterType.CAPABILITY: TypeAdapter(_Capability),
    ParameterType.CAPABILITIES: TypeAdapter(
        Annotated[list[_Capability], Field(min_length=1, max_length=MOST_REPEATED)]
    ),
    ParameterType.COUNT: TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=MOST_REPEATED)]),
    ParameterType.SHARE: TypeAdapter(Annotated[float, Field(strict=True, ge=0, le=1)]),
    ParameterType.EXPRESSION: TypeAdapter(
        Annotated[str, Field(min_length=1, max_length=500), AfterValidator(_expression)]
    ),
    ParameterType.STEPS: TypeAdapter(Annotated[list[_Step], Field(min_length=1, max_length=MOST_REPEATED)]),
    ParameterType.JSON: TypeAdapter(JsonValue),
}


class PatternParameter(_PatternPart):
    """A parameter of a pattern: its type, what it is for, and its default; without a default it must be given."""

    type: ParameterType
    description: str = Field("", max_length=500)
    default: JsonValue = None

    @property
    def required(self) -> bool:
        """Tell whether the parameter has no default."""
        return "default" not in self.model_fields_set

    def read(self, given: object) -> Any:
        """Check a value against the parameter's type, and return it as plain JSON.

        Raises:
            ValidationError: when the value is not of the parameter's type.
        """
        reader = _READERS[self.type]
        return reader.dump_python(reader.validate_python(given), mode="json")


class WorkflowPattern(_PatternPart):
    """A named workflow with parameters, as read from its file; `rendering.py` makes an ordinary workflow of it."""

    pattern: _Word
    """The pattern's name."""
    description: str = Field("", max_length=2_000)
    parameters: dict[_Word, PatternParameter] = Field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = Field(min_length=1)
    """The nodes by their names, as in a workflow's file, with gaps."""

    def arguments(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Return the value of every parameter: the given value, or else the default; both are checked.

        Raises:
            InputError: with up to ten of the unknown, missing or wrong parameters; not retryable.
        """
        problems = [f"{name}: no such parameter" for name in given if name not in self.parameters]
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if name not in given and parameter.required:
                problems.append(f"{name}: must be given, {parameter.type}")
                continue
            try:
                values[name] = parameter.read(given.get(name, parameter.default))
            except ValidationError as error:
                problems += [f"{name}: {told}" for told in problems_of(error)]
        if problems:
            fix = f"see `coditect pattern show {self.pattern}`"
            raise InputError(
                "These parameters do not fit the pattern", pattern=self.pattern, problems=problems[:MOST_TOLD], fix=fix
            )
        return values


def problems_of(error: ValidationError) -> list[str]:
    """Return the problems in a validation error as sentences, each with its place in the value; at most ten."""
    return [
        ": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, "))))
        for one in error.errors(include_url=False, include_input=False)[:MOST_TOLD]
    ]


def check_depth(value: object, levels: int = 0) -> None:
    """Check that a pattern's nodes are not nested too deep to be rendered.

    Raises:
        InputError: when they are; not retryable.
    """
    if levels > MOST_LEVELS:
        raise InputError("A pattern is nested too deep", most_levels=MOST_LEVELS, fix="nest its inputs less")
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in below:
        check_depth(one, levels + 1)
