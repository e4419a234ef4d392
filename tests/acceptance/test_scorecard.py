"""`coditect doctor --scorecard --prove` on real servers: every target is met while processes are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from coditect.operations.scorecard import TARGETS

pytestmark = [pytest.mark.servers, pytest.mark.endurance]


def test_every_target_is_proven_on_a_private_fleet(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "coditect", "doctor", "--scorecard", "--prove", "--output", "json"]
    environ = os.environ | {"TMPDIR": str(tmp_path)}

    ran = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=290, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert {row["name"]: row["verdict"] for row in json.loads(ran.stdout)["rows"]} == dict.fromkeys(TARGETS, "pass")
    assert list(tmp_path.iterdir()) == []
