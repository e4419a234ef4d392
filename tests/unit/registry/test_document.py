from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from coditect.errors import InvalidTask
from coditect.model.capability import Strategy
from coditect.model.prediction import RecentOutcomes, TaskKind, Weight
from coditect.model.registration import AgentStatus, Load
from coditect.registry.document import decode_load, decode_registration, encode_load, encode_registration
from tests.unit.registry.samples import REVIEW, SUMMARY, make_registration

SCHEMA_FILE = Path(__file__).parents[3] / "docs" / "wire" / "registration.schema.json"
BUSY = Load(
    AgentStatus.BUSY,
    3,
    1,
    12.54,
    70_000_000,
    33.1254,
    40,
    2,
    awaiting_owner=1,
    trouble="no files left",
    waiting=(("code.review", "github"),),
    limited=(("code.review", "100/m"),),
    recent=(RecentOutcomes(TaskKind("code.review", 4), 3.5, 51.25, 0.75),),
    learned=(Weight("code.review", "language=ada", -0.125, 0.25),),
)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(SCHEMA_FILE.read_text())
    Draft202012Validator.check_schema(schema)
    return schema


def load_validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({"$ref": "#/$defs/load", "$defs": schema["$defs"]})


@pytest.mark.parametrize("offers", [(), (REVIEW,), (REVIEW, SUMMARY)], ids=len)
def test_written_registration_fits_the_published_schema(schema: dict[str, Any], offers: tuple[Any, ...]) -> None:
    document = json.loads(encode_registration(make_registration(offers=offers)))

    Draft202012Validator(schema).validate(document)


@pytest.mark.parametrize("load", [Load(), BUSY, *(Load(status=status) for status in AgentStatus)])
def test_written_load_fits_the_published_schema(schema: dict[str, Any], load: Load) -> None:
    document = json.loads(encode_load(load))

    load_validator(schema).validate(document)


def test_schema_names_every_written_field_and_no_other(schema: dict[str, Any]) -> None:
    registration = json.loads(encode_registration(make_registration()))
    load = json.loads(encode_load(BUSY))

    assert set(schema["properties"]) == set(registration)
    assert set(schema["$defs"]["capability"]["properties"]) == set(registration["capabilities"][0])
    assert set(schema["$defs"]["load"]["properties"]) == {*load, "beat_ms", "gone"}, "the registry adds two"
    assert set(schema["$defs"]["load"]["properties"]["status"]["enum"]) == set(AgentStatus)


@pytest.mark.parametrize("field", ["agent_id", "name", "version", "slots", "capabilities"])
def test_schema_refuses_a_registration_without_what_readers_need(schema: dict[str, Any], field: str) -> None:
    document = json.loads(encode_registration(make_registration()))
    del document[field]

    assert not Draft202012Validator(schema).is_valid(document)
    with pytest.raises(InvalidTask):
        decode_registration(json.dumps(document).encode())


def test_documents_read_back_equal_without_optional_fields_and_with_those_of_a_newer_version() -> None:
    registration = make_registration(offers=(REVIEW, SUMMARY))

    assert decode_registration(encode_registration(registration)) == registration
    assert decode_load(encode_load(BUSY)) == replace(BUSY, cpu_percent=12.5, latency_ms=33.125)

    newer = json.loads(encode_registration(make_registration())) | {"region": {"name": "eu"}}
    newer_load = json.loads(encode_load(BUSY)) | {"queue_depth": 7}

    assert decode_registration(json.dumps(newer).encode()) == make_registration()
    assert decode_load(json.dumps(newer_load).encode()).running == 3

    text = b'{"agent_id":"a-1","name":"a","version":"1","slots":2,"capabilities":[{"name":"x"}]}'

    brief = decode_registration(text)

    assert brief.capabilities[0].timeout_seconds == 300
    assert brief.tags == frozenset()
    assert decode_load(b'{"status":"idle"}') == Load(status=AgentStatus.IDLE)


@pytest.mark.parametrize("strategy", [None, *Strategy])
def test_strategy_of_a_capability_travels(schema: dict[str, Any], strategy: Strategy | None) -> None:
    registration = make_registration(offers=(replace(REVIEW, strategy=strategy),))
    document = encode_registration(registration)

    Draft202012Validator(schema).validate(json.loads(document))
    assert decode_registration(document) == registration


@pytest.mark.parametrize("value", ["cleverest", 7, ["least_busy"], {}])
def test_strategy_that_is_not_known_here_leaves_it_to_the_broker(value: object) -> None:
    document = json.loads(encode_registration(make_registration()))
    document["capabilities"][0]["strategy"] = value

    assert decode_registration(json.dumps(document).encode()).capabilities[0].strategy is None


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"7", b'"x"', b"{", b'{"status":"asleep"}', b'{"status":"idle","running":"many"}', b"\xff"],
)
def test_unreadable_documents_are_refused(text: bytes) -> None:
    with pytest.raises(InvalidTask):
        decode_load(text)
    with pytest.raises(InvalidTask):
        decode_registration(text)


@pytest.mark.parametrize("told", [[-1, 1.0, 1.0], [1, -1.0, 1.0], [1, 1.0, 1.5], [1, 1.0, -0.5], [1, 1.0], ["x"] * 3])
def test_outcomes_that_cannot_be_are_left_out_before_a_sender_expects_by_them(told: list[Any]) -> None:
    known = ["code.review", 4, 3.5, 51.25, 0.75]
    values = json.loads(encode_load(Load())) | {"recent": [["code.review", 4, *told], 7, [*known, "newer"]]}

    assert decode_load(json.dumps(values).encode()).recent == BUSY.recent


@pytest.mark.parametrize("recent", [None, 7, {"code.review": 1}])
def test_recent_outcomes_of_another_form_hide_no_agent(recent: object) -> None:
    values = json.loads(encode_load(Load())) | {"recent": recent}

    assert decode_load(json.dumps(values).encode()) == Load()
