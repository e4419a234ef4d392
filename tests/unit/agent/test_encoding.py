from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson
import pytest
from pydantic import BaseModel

from coditect.codec import encode_any
from coditect.errors import InvalidTask, SetupError
from coditect.wire import json as wire_json


class Model(BaseModel):
    inner: int = 1
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Part:
    model: Model = field(default_factory=Model)
    price: Decimal = Decimal("1.50")


class Unknown:
    """Nothing that JSON, pydantic or a dataclass can say."""


@pytest.fixture(params=["orjson", "standard library"], autouse=True)
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_json, "orjson", orjson if request.param == "orjson" else None)


@pytest.mark.parametrize("place", ["alone", "in a dict", "in a list"])
@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Model(), b'{"inner":1,"at":"2026-01-01T00:00:00Z"}'),
        (Part(), b'{"model":{"inner":1,"at":"2026-01-01T00:00:00Z"},"price":"1.50"}'),
        (datetime(2026, 1, 1, tzinfo=UTC), b'"2026-01-01T00:00:00Z"'),
        (UUID(int=7), b'"00000000-0000-0000-0000-000000000007"'),
        ({1}, b"[1]"),
        (None, b"null"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_value_is_said_alike_wherever_it_stands(value: Any, said: bytes, place: str) -> None:
    match place:
        case "in a dict":
            assert encode_any({"a": value}) == b'{"a":%s}' % said
        case "in a list":
            assert encode_any([value]) == b"[%s]" % said
        case _:
            assert encode_any(value) == said


def test_bytes_alone_are_json_already() -> None:
    assert encode_any(b'{"a": 1}') == b'{"a": 1}'


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": [math.nan]}, {1: 2}, [{1: 2}], 2**64, object()])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(InvalidTask):
        encode_any(value)


@pytest.mark.parametrize("value", [Unknown(), [Unknown()], {"a": Unknown()}])
def test_value_of_an_unknown_type_is_named(value: object) -> None:
    with pytest.raises(SetupError, match="Unknown"):
        encode_any(value)
