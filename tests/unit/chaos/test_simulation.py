"""The simulation keeps every promise, repeats itself by its seed, and catches every bug that can be planted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from coditect.failpoints import Act, Order
from dispatcher.chaos.program import PLANTED_SECONDS
from dispatcher.chaos.simulation import PACE, Plan, Played, play
from dispatcher.layers.ledger.book import Planted
from dispatcher.witness.history import Type
from dispatcher.witness.ports import POINTS
from dispatcher.witness.watch import PLANTS

pytestmark = pytest.mark.slow
SEEDS = range(1, 7)
MOST_SEEDS = 3
"""By which a planted bug is caught."""
WITHOUT_A_BUG = Plan(seconds=PLANTED_SECONDS, settle_seconds=30.0)
"""What a planted bug is caught in: a bug may keep work from ending, and that is not waited for."""


@pytest.mark.parametrize("seed", SEEDS)
def test_no_promise_is_broken_whatever_breaks(seed: int) -> None:
    played = play(seed, Plan(calm_seconds=8.0))

    assert played.violations == ()
    assert played.faults >= 4
    assert {one.invariant for one in played.judgements if not one.checked} == set()


def test_limits_of_time_end_a_node_once_whatever_breaks() -> None:
    plan = Plan(pace=replace(PACE, limited=0.5))

    played = [play(seed, plan) for seed in (3, 5, 6)]

    ends = [one for each in played for one in each.entries if one.f == "state" and one.val.get("state") == "failed"]
    assert [each.violations for each in played] == [(), (), ()]
    assert ends, "limits were broken"


@pytest.mark.parametrize("point", POINTS)
def test_dispatcher_may_die_at_every_step(point: str) -> None:
    plan = Plan(seconds=4.0, die_at=Order(point, Act.KILL, at=3))

    played = play(1, plan)

    kinds = [one.val["kind"] for one in played.entries if one.f == "kill" and one.type is Type.INVOKE]
    assert kinds == [f"dispatcher.kill at {point}"]
    assert played.violations == ()


@pytest.mark.parametrize("bug", PLANTS)
def test_planted_bug_is_caught_within_three_seeds(bug: str) -> None:
    plan = replace(WITHOUT_A_BUG, planted=Planted(**{bug: True}))

    assert any(play(seed, plan).caught for seed in range(1, MOST_SEEDS + 1))


@pytest.mark.parametrize("seed", range(1, MOST_SEEDS + 1))
def test_same_plan_without_a_bug_breaks_no_promise(seed: int) -> None:
    played = play(seed, WITHOUT_A_BUG)

    assert (played.violations, played.caught) == ((), False)


def test_seed_that_broke_a_promise_breaks_it_again_at_the_same_step() -> None:
    plan = Plan(planted=Planted(reuse_publication=True), settle_seconds=10.0)

    first, again = play(5, plan), play(5, plan)

    assert first.violations
    assert first.violations == again.violations
    assert told(first) == told(again)


def told(played: Played) -> list[tuple[float, str, str, str, str]]:
    return [(one.t, one.proc, one.type, one.f, one.key) for one in played.entries]
