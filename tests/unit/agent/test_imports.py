"""The modules that every agent loads, whose memory and start-up time every agent pays."""

from __future__ import annotations

import subprocess
import sys

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
