"""The outcomes that an agent remembers: for how long, and how many."""

from __future__ import annotations

from coditect.agent.execution import (
    MAX_OUTCOME_BYTES,
    MAX_OUTCOMES,
    OUTCOME_SECONDS,
    Remembered,
)
from coditect.model.result import Outcome, Status
from coditect.model.task import ExecutionKey

BEGIN_MS = 1_800_000_000_000
MINUTE_MS = 60_000


def key(number: int) -> ExecutionKey:
    return (f"task-{number}", 0, 1, 0, "a.b", 0)


def outcome(number: int, *, body: bytes = b"1", at_ms: int = BEGIN_MS) -> Outcome:
    return Outcome(Status.COMPLETED, body, f"task-{number}", None, finished_at_ms=at_ms)


def kept(remembered: Remembered, many: int) -> list[int]:
    return [number for number in range(many) if remembered.get(key(number)) is not None]


def test_the_latest_half_of_the_most_is_always_remembered_and_more_than_the_most_never() -> None:
    remembered, many = Remembered(), MAX_OUTCOMES * 2 + 7
    for number in range(many):
        remembered.put(key(number), outcome(number))

    found = kept(remembered, many)
    assert found == list(range(found[0], many))
    assert MAX_OUTCOMES // 2 <= len(found) <= MAX_OUTCOMES


def test_large_outcomes_are_bounded_by_their_bytes() -> None:
    remembered, body = Remembered(), b"x" * (MAX_OUTCOME_BYTES // 32)
    for number in range(100):
        remembered.put(key(number), outcome(number, body=body))

    assert 16 <= len(kept(remembered, 100)) <= 32


def test_an_outcome_is_remembered_for_its_time_and_forgotten_when_that_has_passed_twice() -> None:
    remembered, minutes = Remembered(), int(OUTCOME_SECONDS // 60)
    for number in range(4 * minutes):
        remembered.put(key(number), outcome(number, at_ms=BEGIN_MS + number * MINUTE_MS))
        found = kept(remembered, number + 1)
        assert found[0] <= max(0, number - minutes)
        assert found[0] >= number - 2 * minutes - 2


def test_a_later_outcome_of_an_execution_takes_the_place_of_an_earlier_one() -> None:
    remembered = Remembered()
    for number in range(MAX_OUTCOMES // 2):
        remembered.put(key(number), outcome(number))
    remembered.put(key(0), outcome(0, body=b"2"))

    assert (found := remembered.get(key(0))) is not None and found.body == b"2"
