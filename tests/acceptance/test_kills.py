"""An agent, the broker and Redis are each killed with -9 amid a load: every task is answered, and answered once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from agents.load import load as load_agent
from coditect.agent.intake import most_in_hand
from coditect.operations.load import Effect, LoadAnswer, LoadEnding, summarize
from tests.acceptance.kills import (
    AGENTS,
    BROKER,
    EARLIEST,
    LATEST,
    LOAD,
    REDIS,
    Kill,
    Ordeal,
    fleet_up,
    strikes,
    suffer,
)
from tests.support import eventually

SEEDS = range(1, 21)
START_SECONDS = 4.0
"""From the death of an agent until its successor consumes, at most."""


@pytest.mark.servers
@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.endurance) for seed in SEEDS)])
async def test_nothing_is_lost_or_hangs_when_everything_is_killed_amid_a_load(
    seed: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    async with fleet_up(tmp_path) as fleet:
        ordeal = await suffer(fleet, seed)
        await eventually(fleet.idle)
        children = fleet.children

    report = ordeal.report
    print(f"seed {seed}: {ordeal}")
    record_property("repeated", sorted(report.repeated))
    killed = {kill.victim for kill in ordeal.kills}
    ends = {name: (one.restarts, one.last_exit) for name, one in children.items() if one.restarts}
    cut_short = {name: (2, 1) for name in starting_at_the_brokers_death(ordeal.kills) if ends.get(name) == (2, 1)}
    assert ends == dict.fromkeys(killed, (1, -signal.SIGKILL)) | cut_short
    assert killed & set(AGENTS) and killed >= {BROKER, REDIS}
    assert all(EARLIEST <= kill.ended / LOAD.tasks <= LATEST for kill in ordeal.kills)
    assert all(kill.in_flight(ordeal.answers) for kill in ordeal.kills), "it proves nothing"
    assert report.endings[LoadEnding.COMPLETED] == LOAD.tasks, report.problems
    assert len({answer.task_id for answer in ordeal.answers}) == LOAD.tasks, "one answer each"
    assert (report.lost, report.hung) == ((), ())
    assert ordeal.unexcused == set()


def starting_at_the_brokers_death(kills: Sequence[Kill]) -> set[str]:
    """Agents that may have declared their inbox just before the broker was killed.

    RabbitMQ may lose the Raft member of such a queue ("not enough nodes online to reach a quorum"), and nobody can
    consume it any more: the agent says so, ends with 1, and is started with an inbox of a new name.
    """
    at = {kill.victim: kill.at_seconds for kill in kills}
    return {name for name in at.keys() & set(AGENTS) if 0 < at[BROKER] - at[name] < START_SECONDS}


def answered(task_id: str, *, from_seconds: float, to_seconds: float) -> LoadAnswer:
    return LoadAnswer(task_id, LoadEnding.COMPLETED, to_seconds, to_seconds - from_seconds, agent_id="agent-1")


def judged(kills: Sequence[Kill], answers: list[LoadAnswer], repeated: str, pids: Sequence[int]) -> set[str]:
    """What nothing excuses in an ordeal in which these processes executed one task."""
    effects = {one.task_id: [Effect("agent-1", 1, 1)] for one in answers if one.task_id}
    effects[repeated] = [Effect(f"agent-{pid}", pid, 1) for pid in pids]
    return Ordeal(kills, answers, summarize(answers, effects), late_replies=0).unexcused


MOST = most_in_hand(load_agent.slots)
ANSWERS = [
    *(answered(f"old-{number}", from_seconds=0.0, to_seconds=1.0) for number in range(10)),
    *(answered(f"last-{number}", from_seconds=0.0, to_seconds=1.9) for number in range(MOST + 1)),
    answered("running", from_seconds=1.5, to_seconds=3.0),
    answered("new", from_seconds=2.5, to_seconds=3.0),
]
ENDED = 10 + MOST + 1


def killed(victim: str, pid: int = 1) -> Kill:
    return Kill(victim, ENDED, at_seconds=2.0, pid=pid, ack_seconds=0.2)


@pytest.mark.parametrize("victim", [BROKER, AGENTS[0]])
def test_judge_excuses_what_was_in_flight_and_what_had_hardly_ended(victim: str) -> None:
    names = ("old-9", "last-0", "last-1", f"last-{MOST}", "running", "new")

    unexcused = {name for name in names if judged([killed(victim)], ANSWERS, name, [1, 2])}

    assert unexcused == {"old-9", "last-0", "new"}, "too long ago, more than an agent has in hand, submitted later"


def test_judge_excuses_what_the_killed_agent_had_in_hand_and_no_other() -> None:
    kill = killed(AGENTS[0], pid=3)

    assert judged([kill], ANSWERS, "running", [1, 2]) == {"running"}
    assert judged([kill], ANSWERS, "running", [3, 2]) == set()


def test_judge_excuses_one_repetition_for_each_kill_and_none_by_one_process() -> None:
    both = [killed(AGENTS[0], pid=1), killed(BROKER, pid=9)]

    assert judged(both[:1], ANSWERS, "running", [1, 2, 3]) == {"running"}
    assert judged(both, ANSWERS, "running", [1, 2, 3]) == set()
    assert judged(both, ANSWERS, "running", [2, 2]) == {"running"}, "it remembers what it has answered"


def test_judge_excuses_nothing_by_the_death_of_redis() -> None:
    assert judged([killed(REDIS)], ANSWERS, "running", [1, 2]) == {"running"}


def test_seed_decides_whom_when_and_in_which_order() -> None:
    plans = [tuple(strikes(seed)) for seed in SEEDS]

    assert plans == [tuple(strikes(seed)) for seed in SEEDS]
    assert len({tuple(one.victim for one in plan) for plan in plans}) > 6
    assert all(EARLIEST < strike.ended / LOAD.tasks <= LATEST for plan in plans for strike in plan)
