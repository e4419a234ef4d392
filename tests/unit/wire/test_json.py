from __future__ import annotations

import math
import subprocess
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coditect.errors import InvalidTask
from coditect.wire import json as wire_json
from tests.unit.model.strategies import json_values

REFUSED = "refused"


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 2


class Pair(Enum):
    BOTH = (1, "two")


class Shouting(str):
    def __str__(self) -> str:
        return self.upper()


class Length(float):
    pass


Point = namedtuple("Point", ["x", "y"])


@dataclass
class Plain:
    a: int = 1


@contextmanager
def _parser(module: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire_json, "orjson", module)
        yield


@pytest.fixture(params=["orjson", "standard library"])
def parser(request: pytest.FixtureRequest) -> Iterator[str]:
    with _parser(orjson if request.param == "orjson" else None):
        yield str(request.param)


def _by_either(act: Callable[[], Any]) -> list[Any]:
    """What comes of it with orjson, and without."""
    found = []
    for module in (orjson, None):
        with _parser(module):
            try:
                found.append(act())
            except InvalidTask:
                found.append(REFUSED)
    return found


unusual_values = st.recursive(
    json_values
    | st.integers()
    | st.integers(2**63 - 2, 2**64 + 2)
    | st.integers(-(2**63) - 2, -(2**63) + 2)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.uuids()
    | st.datetimes()
    | st.dates()
    | st.times()
    | st.binary(max_size=3)
    | st.sampled_from([Colour.RED, Level.HIGH, Pair.BOTH, Shouting("a"), Length(1.5), Point(1, 2), Plain(), Plain]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers(), max_size=2)
        | st.dictionaries(
            st.text(st.characters(), max_size=3) | st.integers() | st.none() | st.sampled_from([*Colour, *Level]),
            inner,
            max_size=3,
        )
        | st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=6,
)


@given(json_values)
def test_value_is_read_back_as_it_was_written(value: object) -> None:
    assert _by_either(lambda: wire_json.loads(wire_json.dumps(value))) == [value, value]


@given(unusual_values)
@example(math.nan)
@example([None, math.inf])
@example("\ud800")
@example({"\ud800": 1})
@example(2**64)
@example({1: "one"})
@example({Colour.RED: [Pair.BOTH]})
@example(UUID(int=7))
@example(datetime(2026, 1, 1, tzinfo=UTC))
@example([Point(1, Length(2.5))])
@example(["null", None])
def test_orjson_writes_and_refuses_what_the_standard_library_does(value: object) -> None:
    fast, plain = _by_either(lambda: wire_json.dumps(value))

    assert (fast == REFUSED) == (plain == REFUSED)
    if fast != REFUSED:
        assert repr(wire_json.loads(fast)) == repr(wire_json.loads(plain))


digits = st.text("0123456789", min_size=1, max_size=25)
numbers = st.builds("{}{}{}".format, st.sampled_from(["", "-", "+"]), digits, st.sampled_from(["", ".5", "e9", "E400"]))
escapes = st.lists(
    st.sampled_from(["a", "\\\\", "\\ud83d", "\\ude00", "\\uDEAD", "\\u00e9", "\\/", "\\x", "\x01", "\x7f"])
)
documents = st.recursive(
    json_values.map(lambda value: wire_json.dumps(value).decode())
    | numbers
    | escapes.map(lambda parts: f'"{"".join(parts)}"')
    | st.sampled_from(["NaN", "Infinity", "-Infinity", "nul", "tru", "-", "01", "1.", ".5", "\ufeff1", "\u0661"]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: f"[{' , '.join(parts)}]")
        | st.lists(inner, max_size=3).map(lambda parts: "{" + ",".join(f'"k":{part}' for part in parts) + "}")
    ),
    max_leaves=4,
).map(str.encode)


@given(documents | st.binary(max_size=60))
@example(b"18446744073709551615")
@example(b"18446744073709551616")
@example(b"-9223372036854775809")
@example(b"1e400")
@example(b"1.7976931348623159e308")
@example(b"1" * 5_000)
@example(b'"\\ud800"')
@example(b'["\\udc00"]')
@example(b'"\\ud83d\\ude00"')
@example(b'"\\ud83d\\n\\ude00"')
@example(b'"\\\\ud83d"')
@example(b'"\\ud83d\\ud83d\\ude00"')
@example(b'{"k":"\\ud83d","k":""}')
@example(b'"\xed\xa0\x80"')
@example(b"-0")
@example(b"-0.0")
@example(b'{"a":1,"a":2}')
def test_orjson_reads_and_refuses_what_the_standard_library_does(body: bytes) -> None:
    fast, plain = _by_either(lambda: wire_json.loads(body))

    assert repr(fast) == repr(plain)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"NaN", b"[Infinity]", b"\xff\xfe", b"\xef\xbb\xbf1", b"{'a': 1}", b"[1,]", b"[" * 100_000],
    ids=["empty", "open", "nan", "infinity", "not utf-8", "byte order mark", "quotes", "comma", "deep"],
)
def test_what_is_no_json_is_refused_by_either_parser(body: bytes) -> None:
    with pytest.raises(InvalidTask):
        wire_json.loads(body)


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, b"bytes", "\ud800", {"a": object()}, math.nan, [None, -math.inf], 2**64, {1: 2}, Plain()],
)
def test_value_that_json_cannot_say_is_refused_by_either_parser(value: object) -> None:
    with pytest.raises(InvalidTask):
        wire_json.dumps(value)


@pytest.mark.usefixtures("parser")
def test_either_parser_writes_the_same_bytes() -> None:
    value = {"ä": [1, 1.5, None, True, Colour.RED, Level.HIGH, Pair.BOTH, Shouting("s"), UUID(int=7)]}

    assert wire_json.dumps(value) == (
        '{"ä":[1,1.5,null,true,"red",2,[1,"two"],"s","00000000-0000-0000-0000-000000000007"]}'.encode()
    )


@pytest.mark.usefixtures("parser")
def test_integer_beyond_64_bits_of_somebody_else_is_read_as_a_float() -> None:
    assert wire_json.loads(b"[18446744073709551616]") == [float(2**64)]


@pytest.mark.usefixtures("parser")
@pytest.mark.parametrize(("levels", "written"), [(254, True), (255, False)])
@pytest.mark.parametrize("leaf", ["x", None])
def test_either_parser_writes_254_levels(levels: int, written: bool, leaf: object) -> None:
    value: object = leaf
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}

    if written:
        assert wire_json.loads(wire_json.dumps(value)) == value
    else:
        with pytest.raises(InvalidTask):
            wire_json.dumps(value)


@pytest.mark.usefixtures("parser")
def test_caller_says_what_json_cannot() -> None:
    assert wire_json.dumps({"a": [Plain(7), {1, 2}]}, otherwise=repr) == b'{"a":["Plain(a=7)","{1, 2}"]}'


@pytest.mark.usefixtures("parser")
def test_what_is_made_of_a_value_must_end_somewhere() -> None:
    with pytest.raises(InvalidTask):
        wire_json.dumps(object(), otherwise=lambda value: [value])


def test_what_is_written_takes_no_more_memory_than_it_has_bytes() -> None:
    """orjson shortens buffers of 4 KiB in place; in a process of its own, since this one's heap has room to reuse."""
    program = """
import psutil
from coditect.wire.json import dumps
process = psutil.Process()
before = process.memory_info().rss
kept = [dumps(value) for value in (None, "text", {"a": None}) for _ in range(5_000)]
print(process.memory_info().rss - before)
"""
    grown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert int(grown) < 10_000_000
