"""Documents by three agents at once, as a person runs it: real servers, and a stand-in for a model."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.servers import ROOT

pytestmark = [pytest.mark.servers, pytest.mark.proof]


def test_three_agents_write_at_once_and_the_site_has_their_pages() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "agents.demo.docs"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = re.findall(r"^  1  (\w+) +completed  (\d+\.\d) to (\d+\.\d) s +[\w.-]+ +([\w-]+)-\w+$", ran.stdout, re.M)
    assert {row[3] for row in rows} == {"documenter", "guide-writer", "deployment-writer"}
    assert max(float(row[1]) for row in rows) < min(float(row[2]) for row in rows), "all three are at work at once"
    site = ROOT / re.findall(r"Site: (\S+)$", ran.stdout.strip())[0]
    pages = {path.name: path.read_text() for path in site.glob("*.html")}
    assert len(pages) == 4
    assert sum("This page is about" in text for name, text in pages.items() if name != "index.html") == 3
