from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InvalidTask
from coditect.model import json as wire_json
from tests.unit.model.strategies import json_values


@pytest.fixture(params=["orjson", "standard library"])
def parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "orjson":
        pytest.importorskip("orjson")
    else:
        monkeypatch.setattr(wire_json, "orjson", None)
    return str(request.param)


@given(json_values)
def test_value_is_read_back_as_it_was_written(value: object) -> None:
    assert wire_json.loads(wire_json.dumps(value)) == value


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
@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", "\ud800", {"a": object()}])
def test_value_that_json_cannot_say_is_refused_by_either_parser(value: object) -> None:
    with pytest.raises(InvalidTask):
        wire_json.dumps(value)


@pytest.mark.usefixtures("parser")
def test_either_parser_writes_the_same_bytes() -> None:
    assert wire_json.dumps({"ä": [1, 1.5, None, True]}) == '{"ä":[1,1.5,null,true]}'.encode()


@given(st.binary(max_size=60))
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    try:
        wire_json.loads(body)
    except InvalidTask:
        return
