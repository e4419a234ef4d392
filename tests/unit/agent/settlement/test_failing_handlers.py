"""A failing handler is seen where it runs: in the log of its agent."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, Retry, TaskFailed
from coditect.cli.terminal.failure import raised_at
from coditect.telemetry.logs import JsonLines, PlainLines
from coditect.testing import TestFleet


async def fail(_: object) -> None:
    raise ValueError("no luck")


def fail_in_thread(_: object) -> None:
    raise ValueError("no luck")


def failing(handler: Callable[[object], object] = fail) -> Agent:
    agent = Agent("failing")
    agent.capability("fail.now", retry=Retry(3, first="2s"))(handler)
    return agent


@pytest.mark.parametrize("handler", [fail, fail_in_thread])
@pytest.mark.parametrize("durable", [False, True])
async def test_each_attempt_is_a_line_and_the_traceback_is_there(
    handler: Callable[[object], object], durable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "coditect.agent.outcomes")
    async with TestFleet(agents=[failing(handler)]) as fleet:
        handle = await fleet.client.submit("fail.now", 1, durable=durable)
        with pytest.raises(TaskFailed) as raised:
            await handle.result(timeout="1h")

    lines: list[Any] = [one for one in caplog.records if one.name == "coditect.agent.outcomes"]
    again, last = "An attempt failed; the task is tried again", "A task failed"
    assert [(one.getMessage(), one.attempt) for one in lines] == [(again, 1), (again, 2), (last, 3)]
    assert {(one.error, one.task_id, one.capability) for one in lines} == {
        ("ValueError: no luck", handle.task_id, "fail.now")
    }
    assert f'File "{__file__}"' in lines[0].traceback
    assert str(raised.value).startswith("The task failed")
    for formatter in (PlainLines(), JsonLines()):
        assert "ValueError: no luck" in formatter.format(lines[0]).splitlines()[0]
        assert Path(__file__).name in formatter.format(lines[0])


async def test_a_flood_of_failures_does_not_fill_the_log_with_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "coditect.agent.outcomes")
    async with TestFleet(agents=[failing()]) as fleet:
        handles = [await fleet.client.submit("fail.now", number, max_attempts=1) for number in range(50)]
        for handle in handles:
            await handle.outcome()

    lines: list[Any] = [one for one in caplog.records if one.name == "coditect.agent.outcomes"]
    assert len(lines) == 50
    assert sum(hasattr(one, "traceback") for one in lines) < 10


def test_the_place_where_it_was_raised_is_the_handlers_own() -> None:
    trace = """Traceback (most recent call last):
  File "/srv/shop.py", line 12, in review
    load(task)
  File "/usr/lib/python3.11/json/decoder.py", line 355, in raw_decode
json.decoder.JSONDecodeError: Expecting value"""

    assert raised_at(trace) == "/srv/shop.py:12 in review"
    assert raised_at("") == ""
