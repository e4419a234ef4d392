"""Real processes and servers, broken by a seed: every promise is kept, and a mutant is caught. Minutes each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chaos.run import PACE, RunOrder, run

pytestmark = [pytest.mark.servers, pytest.mark.proof, pytest.mark.timeout(1_200)]
SEEDS = (1, 2, 3)
BRISK = replace(PACE, milliseconds=(1, 10_000), long=0.0)
"""No task is longer than ten seconds: for one that a wipe of the broker took the load waits five times its length."""
IDLE_MACHINE = "recovered in time"
"""The promise whose bound holds for a machine that does nothing else: `make chaos` and the long tests judge it."""


async def test_half_a_minute_of_every_fault_breaks_no_promise(tmp_path: Path) -> None:
    verdict = await run(RunOrder(4, 30.0, tmp_path / "run", pace=BRISK))

    print("\n".join(verdict.lines()))
    assert [one.invariant for one in verdict.checks if not one.passed and one.invariant != IDLE_MACHINE] == []


@pytest.mark.endurance
@pytest.mark.parametrize("seed", SEEDS)
async def test_no_promise_is_broken_whatever_breaks(seed: int, tmp_path: Path) -> None:
    verdict = await run(RunOrder(seed, 60.0, tmp_path / "run"))

    print("\n".join(verdict.lines()))
    assert verdict.kept
    assert verdict.objections == ()


@pytest.mark.endurance
@pytest.mark.parametrize("mutant", ["skip_fence", "confirmed_unsent"])
async def test_mutant_in_real_processes_is_caught_within_three_seeds(mutant: str, tmp_path: Path) -> None:
    for seed in SEEDS:
        verdict = await run(RunOrder(seed, 60.0, tmp_path / f"run-{seed}", mutant=mutant))
        if verdict.caught:
            return
    pytest.fail(f"{mutant} was not caught")
