"""The deployment of two branches as a person runs it: real git, real servers, a real service."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.servers import ROOT

pytestmark = [pytest.mark.servers, pytest.mark.proof]


def test_a_branch_that_breaks_the_service_is_rolled_back_and_says_why() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "agents.demo.deployment"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    good, _, broken = ran.stdout.partition("\nBranch currency")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Workflow pr_deployment: completed" in good
    assert re.search(r"ship_it +completed .* policy +after", good), good
    assert "Workflow pr_deployment: compensated" in broken
    assert "its process has ended: KeyError: 'SHOP_CURRENCY'" in broken
    assert re.search(r"undo +release\.compensate +completed .* service\.rollback", broken), broken
    released, before = re.findall(r"answers as (\w+), before as (\w+)", good)[0]
    assert released != before
    assert re.search(rf"answers as {released}, before as {released}\n", broken), broken
