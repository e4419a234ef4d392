"""What a task does that ends its own process in an orderly way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from coditect.aio.launch import READY_FILE

END = "from chaos.load.parts.poison import _terminate; print(_terminate(''), flush=True)"
IN_AGENT = "import signal; signal.signal(signal.SIGTERM, lambda *_: print('drains', flush=True)); "


@pytest.mark.parametrize(("before", "printed", "ready"), [(IN_AGENT, "drains\nTrue\n", False), ("", "", True)])
def test_agent_drains_and_is_not_ready_any_more_and_a_worker_process_dies(
    before: str, printed: str, ready: bool, tmp_path: Path
) -> None:
    file = tmp_path / "agent.ready"
    file.touch()
    command, env = [sys.executable, "-c", before + END], {**os.environ, READY_FILE: str(file)}

    ended = subprocess.run(command, check=False, env=env, capture_output=True, text=True)

    assert (ended.stdout, file.exists()) == (printed, ready)
