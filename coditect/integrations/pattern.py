"""Regular expressions from untrusted sources, matched without backtracking, so that no match takes very long."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from pydantic_core import SchemaError, SchemaValidator, core_schema

from coditect.errors import InputError


@lru_cache(maxsize=100)  # a compiled pattern may take ten megabytes
def matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that tells whether any part of a text matches a pattern.

    Raises:
        InputError: when the pattern is no regular expression, or needs backtracking.
    """
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")).isinstance_python
    except SchemaError as error:
        fix = "neither look-around nor back-references"
        raise InputError("The pattern cannot be matched in bounded time", reason=str(error)[:300], fix=fix) from error
