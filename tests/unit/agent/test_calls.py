"""An ordinary task costs few function calls, so that an agent does many of them per second."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType

from coditect import Agent
from coditect.testing import TestFleet

TASKS = 200
MOST_CALLS = 50
"""The limit of calls into `coditect.agent`: there are 47, and each costs half a percent of the speed."""


async def test_ordinary_task_takes_few_calls_through_the_agent() -> None:
    agent, calls = Agent("worker", slots=TASKS), Counter[str]()

    @agent.capability("work.do")
    async def work(number: int) -> int:
        return number

    def count(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and "/coditect/agent/" in frame.f_code.co_filename:
            calls[frame.f_code.co_qualname] += 1

    async with TestFleet(agents=[agent]) as fleet:
        sys.setprofile(count)
        try:
            handles = [await fleet.submit("work.do", number) for number in range(TASKS)]
            assert [await handle.result(int) for handle in handles] == list(range(TASKS))
        finally:
            sys.setprofile(None)

    assert calls.total() / TASKS <= MOST_CALLS, calls.most_common()
