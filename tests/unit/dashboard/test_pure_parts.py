"""The dashboard's parts without DOM (layout, groups, forms, events), by Node's own test runner where Node is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NODE = shutil.which("node")
TESTS = sorted(Path(__file__).parent.glob("*.test.mjs"))


@pytest.mark.skipif(NODE is None, reason="Node is missing: apt-get install nodejs")
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_the_parts_without_dom_pass_their_tests(path: Path) -> None:
    assert NODE is not None

    ran = subprocess.run([NODE, "--test", str(path)], capture_output=True, text=True, timeout=60, check=False)

    assert ran.returncode == 0, ran.stdout + ran.stderr
