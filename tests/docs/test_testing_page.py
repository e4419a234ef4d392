"""The test that docs/testing.md shows runs where nothing else is, and its table names what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from coditect.testing import TestFleet
from tests.docs.pages import Mark, blocks, section, table_rows
from tests.servers import ROOT

PAGE = ROOT / "docs" / "testing.md"


def test_copied_test_runs_as_it_stands(tmp_path: Path) -> None:
    [block] = [one for one in blocks(PAGE) if one.mark is Mark.FILE and one.remark == "examples/test_courier.py"]
    (tmp_path / "test_courier.py").write_text(block.text, encoding="utf-8")
    unset = ("CODITECT_", "PYTEST_", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unset)}

    done = subprocess.run(
        [sys.executable, "-I", "-m", "pytest", "test_courier.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^=+ \d+ passed in ", done.stdout, re.MULTILINE), done.stdout


def test_every_public_name_of_the_fleet_is_in_the_table() -> None:
    told = {name for row in table_rows(section(PAGE, "What it can do")) for name in re.findall(r"`(\w+)", row[0])}
    assigned = {"client", "server", "registry"}

    assert told == {name for name in vars(TestFleet) if not name.startswith("_")} | assigned
