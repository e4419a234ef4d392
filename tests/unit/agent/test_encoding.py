from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, PlainSerializer, TypeAdapter, field_serializer

from coditect.codec import codec, encode_any
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


class Order(BaseModel):
    price: float = 1.0
    number: int = 1
    note: str | None = None
    extra: dict[str, Any] = {}


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Spoken(BaseModel):
    """A model that says how NaN is written."""

    model_config = ConfigDict(ser_json_inf_nan="strings")
    price: float
    note: str | None = None


class Written(BaseModel):
    """A model whose serializer does not say what it returns."""

    price: str = "free"
    limit: Annotated[int, PlainSerializer(lambda limit: 2**limit)] = 1

    @field_serializer("price")
    def write_price(self, price: str) -> Any:
        return math.nan if price == "none" else price


class Bound(Enum):
    NONE = math.inf
    MOST = 2**64
    KEYED = {None: 1}  # noqa: RUF012 - a value of the enum


@dataclass
class Basket:
    orders: list[Order]


@dataclass
class Letter:
    """A type of a bounded number of parts, whose texts may be long."""

    text: str
    number: int = 1
    score: float | None = None
    kind: Literal["plain", "rich"] = "plain"
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    sender: UUID | None = None


REFUSED_VALUES = [
    (float, math.nan, ""),
    (float, -math.inf, ""),
    (int, 2**70, ""),
    (int, -(2**63) - 1, ""),
    (Decimal, Decimal("NaN"), ""),
    (dict[str, int], {None: 1}, ""),
    (dict[int, int], {None: 1}, ""),
    (dict[str, Any], {"a": {1: 2}}, "a"),
    (dict[str, Any], {"a": [0, {None: 1}]}, "a[1]"),
    (list[dict[Any, int]], [{True: 1}], "[0]"),
    (set[float], {math.nan}, "[0]"),
    (tuple[int, float], (1, math.inf), "[1]"),
    (Order, Order(price=math.nan), "price"),
    (Order, Order(number=2**64), "number"),
    (Order, Order(extra={"deep": [{"er": math.nan}]}), "extra.deep[0].er"),
    (Open, Open.model_validate({"more": math.nan}), "more"),
    (Basket, Basket([Order(), Order(price=math.inf)]), "orders[1].price"),
    (Written, Written(price="none"), "price"),
    (Written, Written(limit=70), "limit"),
    (Bound, Bound.NONE, ""),
    (list[Bound], [Bound.MOST], "[0]"),
    (Bound, Bound.KEYED, ""),
    (Literal[Bound.NONE], Bound.NONE, ""),
    (Literal[Bound.KEYED], Bound.KEYED, ""),
    (Literal[2**70], 2**70, ""),
    (deque[float], deque([0.0, math.nan]), "[1]"),
    (Counter[str], Counter(many=2**70), "many"),
    (dict[float, int], {math.nan: 1}, ""),
    (dict[Decimal, int], {Decimal("Infinity"): 1}, ""),
    (dict[str, str], {"\ud800": "cut"}, ""),
    (dict[int, dict[str, int]], {1: {"\udc80": 1}}, "[1]"),
    (Letter, Letter("", 2**64), "number"),
    (Letter, Letter("", score=math.nan), "score"),
    (Letter, Letter("x" * 10_000, -(2**70)), "number"),
]


@pytest.mark.parametrize(("annotation", "value", "place"), REFUSED_VALUES, ids=lambda value: str(value)[:100])
def test_value_that_json_cannot_say_is_refused_behind_an_annotation(annotation: Any, value: object, place: str) -> None:
    with pytest.raises(InvalidTask, match="cannot be written as JSON") as refused:
        codec(annotation).encode(value)

    assert refused.value.facts.get("at", "") == place


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (Order(price=math.nan), "price"),
        ({"orders": [Order(number=2**70)]}, "orders[0].number"),
        ({"orders": [{"price": math.nan}]}, "orders[0].price"),
        ({"a": {None: 1}}, "a"),
        ([1, "\ud800"], "[1]"),
    ],
    ids=str,
)
def test_refusal_of_a_submitted_value_names_the_place(value: object, place: str) -> None:
    with pytest.raises(InvalidTask) as refused:
        encode_any(value)

    assert refused.value.facts["at"] == place


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        (dict[int, str | None], {1: None}, b'{"1":null}'),
        (Order, Order(), b'{"price":1.0,"number":1,"note":null,"extra":{}}'),
        (
            Order,
            Order(number=2**64 - 1, note="NaN"),
            b'{"price":1.0,"number":18446744073709551615,"note":"NaN","extra":{}}',
        ),
        (Spoken, Spoken(price=math.nan), b'{"price":"NaN","note":null}'),
        (
            dict[str, Any],
            {"at": datetime(2026, 1, 1, tzinfo=UTC), "none": None},
            b'{"at":"2026-01-01T00:00:00Z","none":null}',
        ),
        (float | None, None, b"null"),
        (dict[str, str], {"\ufffd": "replaced by its author"}, '{"\ufffd":"replaced by its author"}'.encode()),
    ],
    ids=str,
)
def test_value_that_only_looks_like_a_refused_one_is_written(annotation: Any, value: object, said: bytes) -> None:
    assert codec(annotation).encode(value) == said


@pytest.mark.parametrize(
    "letter",
    [
        Letter("The quick brown fox. " * 10_000),
        Letter("".join(map(chr, (*range(256), 0x2028, 0xFFFD, 0x1F600))), score=1e22, kind="rich", sender=UUID(int=7)),
        Letter("null", 2**64 - 1, 5e-324),
        Letter("NaN", -(2**63), -0.0),
    ],
    ids=["long", "odd characters", "most", "least"],
)
def test_long_texts_are_written_as_pydantic_writes_them(letter: Letter) -> None:
    assert codec(Letter).encode(letter) == TypeAdapter(Letter).dump_json(letter)
    assert codec(Letter).decode(codec(Letter).encode(letter)) == letter


@pytest.mark.parametrize(
    ("annotation", "body"),
    [
        (float, b"NaN"),
        (float, b"1e999"),
        (float, b"9" * 400),
        (Any, b"[-Infinity]"),
        (dict[str, Any], b'{"a": [1E+400]}'),
        (Order, b'{"price": Infinity}'),
        (Order, b'{"unknown": NaN}'),
    ],
    ids=str,
)
def test_number_that_json_does_not_have_is_refused_at_the_input(annotation: Any, body: bytes) -> None:
    with pytest.raises(InvalidTask, match="not valid JSON"):
        codec(annotation).decode(body)


def test_iterator_in_a_value_of_any_type_is_not_written_unseen() -> None:
    with pytest.raises(InvalidTask, match="read once"):
        codec(list[Any]).encode([iter([math.nan])])


ESCAPED = [
    r"\u006ean",
    r"n\u0061n",
    r"\u0069nf",
    r"\tnan",
    r"\nInfinity\n",
    "\u00a0nan",
    "1e4_00",
    "1_0e400",
    "1" + "_0" * 309,
]


@pytest.mark.parametrize("text", ["NaN", "nan", " inf", "-Infinity", "1e999", "9" * 400, *ESCAPED])
@pytest.mark.parametrize(("annotation", "body"), [(Order, '{{"price": "{}"}}'), (list[float], '["{}"]')], ids=str)
def test_text_that_would_become_no_number_is_refused_at_the_input(annotation: Any, body: str, text: str) -> None:
    with pytest.raises(InvalidTask, match="does not fit the schema"):
        codec(annotation).decode(body.format(text).encode())


def test_text_and_small_numbers_of_an_input_are_no_such_numbers() -> None:
    assert codec(Spoken).decode(b'{"price": "-inf"}') == Spoken(price=-math.inf)
    assert codec(Order).decode(b'{"note": "infinite", "number": "7"}') == Order(note="infinite", number=7)
    assert codec(Order).decode(b'{"note": "NaN", "price": 1e-400}') == Order(note="NaN", price=0.0)
    assert codec(list[float]).decode(b"[1e300, 1e+005]") == [1e300, 1e5]


class Search(BaseModel):
    text: str = ""
    most: float = math.inf
    odd: Annotated[str, PlainSerializer(lambda _: 1 // 0)] = ""


@pytest.mark.parametrize(
    "body", [b'{"text": "nano"}', b'{"text": "inf"}', b'{"inf": 1}', b'{"text": "nan", "odd": "x"}']
)
def test_default_or_serializer_of_an_input_is_no_reason_to_refuse_it(body: bytes) -> None:
    assert codec(Search).decode(body).most == math.inf


@pytest.mark.parametrize("value", [Unknown(), [Unknown()], {"a": Unknown()}])
def test_value_of_an_unknown_type_is_named(value: object) -> None:
    with pytest.raises(SetupError, match="Unknown"):
        encode_any(value)
