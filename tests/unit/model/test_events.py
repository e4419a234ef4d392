from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InputError, InvalidTask
from coditect.model.message import Event, Message
from coditect.testing import TestFleet
from coditect.wire.events import event_message, read_event
from tests.unit.model.strategies import hostile_values, json_values, short_text

events = st.builds(
    Event,
    type=st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}", fullmatch=True),
    source=short_text,
    id=short_text,
    time_ms=st.integers(0, 4_102_444_800_000),
    subject=short_text,
    data=st.dictionaries(short_text, json_values, max_size=3),
)
CLOUD_EVENT = {"ce-type": "t", "ce-source": "s", "ce-id": "i", "ce-time": "2026-01-01T00:00:00Z"}


@given(events)
def test_event_is_read_back_as_it_was_written(event: Event) -> None:
    assert read_event(event_message(event), 0) == event


@pytest.mark.parametrize(
    ("type_", "subject", "data", "wrong"),
    [
        (7, "", {}, "type_"),
        ("", "", {}, "type_"),
        ("x" * 256, "", {}, "type_"),
        ("\ud800", "", {}, "type_"),
        ("shop.sold", 7, {}, "subject"),
        ("shop.sold", "\udc80", {}, "subject"),
        ("shop.sold", "x" * 9_000, {}, "subject"),
        ("shop.sold", "", {"total": math.nan}, "total"),
    ],
)
async def test_event_that_cannot_be_published_is_refused_by_name(
    type_: Any, subject: Any, data: Any, wrong: str
) -> None:
    async with TestFleet(agents=[]) as fleet:
        with pytest.raises(InputError) as refused:
            await fleet.client.emit(type_, subject=subject, **data)

    assert wrong in (refused.value.facts.get("parameter"), refused.value.facts.get("at"))


def test_event_on_the_wire_is_a_cloud_event() -> None:
    message = event_message(Event("task.completed", "/agents/a", "id-1", 1_767_225_600_001, "task-1", {"n": 1}))

    assert dict(message.headers) == {
        "ce-specversion": "1.0",
        "ce-id": "id-1",
        "ce-type": "dev.coditect.task.completed.v1",
        "ce-source": "/agents/a",
        "ce-time": "2026-01-01T00:00:00.001Z",
        "ce-subject": "task-1",
        "CC": ["task.completed.task-1"],
    }
    assert message.body == b'{"n":1}'


@pytest.mark.parametrize("missing", sorted(CLOUD_EVENT.keys() - {"ce-time"}))
def test_message_without_an_attribute_is_no_event(missing: str) -> None:
    headers = {name: value for name, value in CLOUD_EVENT.items() if name != missing}

    with pytest.raises(InvalidTask):
        read_event(Message(b"{}", headers), 0)


def test_event_of_a_stranger_without_a_time_is_of_its_arrival() -> None:
    headers = {name: value for name, value in CLOUD_EVENT.items() if name != "ce-time"}

    assert read_event(Message(b"{}", headers), 1_767_225_600_000).time_ms == 1_767_225_600_000


@pytest.mark.parametrize(
    ("time", "time_ms"),
    [
        ("0001-01-01T00:00:00", -62_135_596_800_000),
        ("9999-12-31T23:59:59", 253_402_300_799_000),
        ("2026-01-01", 1_767_225_600_000),
        ("0001-01-01T00:00:00+14:00", -62_135_647_200_000),
    ],
)
def test_time_at_the_ends_of_the_calendar_is_read_as_utc(time: str, time_ms: int) -> None:
    event = read_event(Message(b"{}", CLOUD_EVENT | {"ce-time": time}), 0)

    assert event.time_ms == time_ms


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys([*CLOUD_EVENT, "ce-subject"], hostile_values)),
    st.binary(max_size=20),
)
def test_hostile_event_raises_nothing_but_invalid_task(headers: dict[str, Any], body: bytes) -> None:
    try:
        event = read_event(Message(body, CLOUD_EVENT | headers), 0)
    except InvalidTask:
        return

    assert all(isinstance(one, str) for one in (event.type, event.source, event.id, event.subject))
    assert isinstance(event.data, dict)
