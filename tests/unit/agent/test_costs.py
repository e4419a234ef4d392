"""What an agent costs: an ordinary task takes few function calls, and the start imports few modules."""

from __future__ import annotations

import subprocess
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


NOT_FOR_ALL = {
    "pybreaker": "only an agent with a breaker needs it",
    "tenacity": "only a handler that retries needs it",
    "coditect.client.client": "only a handler that calls others needs it",
    "coditect.operations": "the other commands' and the API's",
    "coditect.workflow": "a client's and the control plane's",
    "dispatcher": "the control plane's",
}


def test_start_of_an_agent_loads_nothing_that_only_some_agents_need() -> None:
    loads = "import sys, coditect.agent.program, coditect.cli.main, coditect.cli.agent"
    script = f"{loads}; print(*sorted(set({sorted(NOT_FOR_ALL)}) & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.stderr, {name: NOT_FOR_ALL[name] for name in done.stdout.split()}) == ("", {})
