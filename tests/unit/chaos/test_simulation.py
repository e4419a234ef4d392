"""The simulation keeps every promise, and repeats itself by its seed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from chaos.failpoints import Act, Failpoint
from chaos.faults.network import MANNERS
from chaos.history import Type
from chaos.load.workload import ChaosLoad
from chaos.recorder import POINTS
from chaos.simulation import Played, play
from chaos.simulation_plan import PACE, PARTS_OF, POISONED, SimulationPlan
from coditect.agent.pool import PROCESS_DIED
from dispatcher.shards.ownership import ShardOwnership

pytestmark = pytest.mark.proof


@pytest.mark.parametrize("seed", [9, 10, 17])
def test_no_promise_is_broken_by_another_seed(seed: int) -> None:
    assert play(seed).violations == ()


def test_processes_are_parted_from_each_server_in_each_manner_and_no_promise_is_broken() -> None:
    plan = SimulationPlan(kinds=("agent.part", "dispatcher.part"), seconds=30.0, die_at_a_call=0.0)

    played = [play(seed, plan) for seed in (1, 2, 3)]

    parts = [one for each in played for one in each.entries if one.f == "part" and one.type is Type.INVOKE]
    found = {(one.key.partition("-")[0], one.val["kind"], one.val["manner"]) for one in parts}
    servers = {"agent": ("broker", "redis"), "dispatcher": ("broker", "redis", "store")}
    assert found == {(who, f"{of}.part", how) for who, many in servers.items() for of in many for how in MANNERS}
    assert [each.violations for each in played] == [(), (), ()]


@pytest.mark.timeout(900)
def test_no_promise_is_broken_whatever_breaks_and_each_has_something_that_could_break_it() -> None:
    played = [play(seed, SimulationPlan(calm_seconds=8.0)) for seed in (1, 2, 3, 5, 6, 8, 4, 7, *PARTS_OF, POISONED)]

    assert not [each.violations for each in played if each.violations]
    assert min(each.faults for each in played[:6]) >= 4
    idle = [{one.invariant for one in each.checks if not one.checked} for each in played]
    assert set.intersection(*idle) == set()


def test_limits_of_time_end_a_node_once_whatever_breaks() -> None:
    plan = SimulationPlan(pace=replace(PACE, limited=0.5))

    played = [play(seed, plan) for seed in (3, 5, 6)]

    ends = [one for each in played for one in each.entries if one.f == "state" and one.val.get("state") == "failed"]
    assert [each.violations for each in played] == [(), (), ()]
    assert ends, "limits were broken"


@pytest.mark.parametrize("point", POINTS)
def test_dispatcher_may_die_at_every_step(point: str) -> None:
    plan = SimulationPlan(seconds=4.0, die_at=Failpoint(point, Act.KILL, at=3))

    played = play(1, plan)

    kinds = [one.val["kind"] for one in played.entries if one.f == "kill" and one.type is Type.INVOKE]
    assert kinds == [f"dispatcher.kill at {point}"]
    assert played.violations == ()


def test_error_that_ends_work_in_the_background_fails_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def watch(_: ShardOwnership) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(ShardOwnership, "_watch", watch)

    played = play(1, SimulationPlan(seconds=1.0))

    assert not played.kept
    assert "crashed: KeyError('planted')" in {line.strip() for line in played.lines()}


def test_error_that_ends_the_load_fails_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def workflow(_: ChaosLoad) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(ChaosLoad, "workflow", workflow)

    assert "planted" in play(1, SimulationPlan(seconds=1.0)).violations[0]


def test_seed_is_played_again_step_by_step() -> None:
    first, again = play(5), play(5)

    assert told(first) == told(again)


STEPS = """
from hashlib import sha256
from coditect.testing.virtual_time import Schedule
from chaos.simulation import play
from chaos.simulation_plan import SimulationPlan

steps, enqueue, close = sha256(), Schedule._enqueue, Schedule.close

def noted(schedule, actor, handle, guard):
    name = getattr(getattr(handle._callback, "__self__", None), "get_name", str)()
    steps.update(f"{schedule._virtual_clock.now} {actor.name} {name};".encode())
    enqueue(schedule, actor, handle, guard)

def closed(schedule):
    print(steps.hexdigest())  # what follows is in real time
    close(schedule)

Schedule._enqueue, Schedule.close = noted, closed
play(1, SimulationPlan(seconds=2.0, agents=6, kinds=("agent.kill",), between_seconds=(0.1, 0.3), die_at_a_call=0.0))
"""


def test_each_step_is_the_same_in_another_process_whatever_orders_its_sets() -> None:
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("0", "1")]
    command, pipe = [sys.executable, "-c", STEPS], subprocess.PIPE
    playing = [subprocess.Popen(command, env=each, stdout=pipe, text=True) for each in environments]

    first, again = (process.communicate()[0] for process in playing)

    assert first == again
    assert len(first.strip()) == 64


def told(played: Played) -> list[tuple[float, str, str, str, str]]:
    return [(one.t, one.proc, one.type, one.f, one.key) for one in played.entries]


def test_task_that_ends_its_agents_ends_three_of_them_and_then_itself() -> None:
    played = play(1, poisoned("suicides"))

    ends = Counter(one.key for one in played.entries if one.f == "terminate")
    assert played.violations == ()
    assert ends and set(ends.values()) == {3}
    assert {reasons_of(played)[key] for key in ends} == {PROCESS_DIED}


def test_task_that_swallows_its_cancellation_fails_at_its_timeout() -> None:
    played = play(1, poisoned("swallowed cancellations"))

    assert played.violations == ()
    assert {*reasons_of(played).values()} == {"timeout"}


def poisoned(part: str) -> SimulationPlan:
    """One kind of poison at a time: a task whose agent another one ends is a suspect, too."""
    return SimulationPlan(seconds=4.0, kinds=(), die_at_a_call=0.0, pace=replace(PACE, parts={part: 1}))


def reasons_of(played: Played) -> dict[str, str]:
    return {one.key: one.val["reason"] for one in played.entries if one.f == "failed"}
