"""A few short seeds of the simulation, in which every transaction function runs twice (`tests/rerun.py`)."""

from __future__ import annotations

import pytest

from dispatcher.chaos.simulation import play
from dispatcher.chaos.simulation_plan import SimulationPlan


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_promise_is_broken_by_functions_that_run_twice(seed: int) -> None:
    played = play(seed, SimulationPlan(seconds=2.0))

    assert played.violations == ()
    assert played.faults
