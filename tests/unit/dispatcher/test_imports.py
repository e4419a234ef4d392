"""The modules that every dispatcher loads, whose memory and start-up time every dispatcher pays."""

from __future__ import annotations

import subprocess
import sys

from dispatcher.shards import verbs

NOT_FOR_ALL = {
    "pydantic": "only a submission needs it, and a submission's transaction runs beside the event loop",
    "psutil": "an agent's",
    "rich": "the command line's",
    "typer": "the command line's",
    "fdb": "only a dispatcher on FoundationDB needs it",
    "yaml": "a workflow file's",
    "dispatcher.chaos": "it breaks fleets on purpose, and is not in the wheel",
    "coditect.client": "a user's",
    "coditect.codec": "a client's and an agent's",
    "cronsim": "only a schedule needs it",
    "zoneinfo": "only a schedule needs it",
    **dict.fromkeys(verbs.COORDINATION.values(), "only a fleet that uses it needs it"),
}


def test_start_of_a_dispatcher_loads_nothing_that_only_some_work_needs() -> None:
    # redis-py loads OpenTelemetry wherever that is installed, and OpenTelemetry loads psutil
    alone = "import sys; sys.modules['opentelemetry'] = None; import dispatcher"
    script = f"{alone}; print(*sorted(set({sorted(NOT_FOR_ALL)}) & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.stderr, {name: NOT_FOR_ALL[name] for name in done.stdout.split()}) == ("", {})
