"""The strategy `adaptive`, beside the others, on fleets of real agents in virtual time."""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from coditect import Agent
from coditect.model.capability import Strategy
from coditect.model.prediction import RecentOutcomes, TaskKind, task_kind, unknown
from coditect.registry.scoring import EXPLORE_EVERY, assign, choose
from coditect.testing import TestFleet
from tests.unit.registry.fleets import KIND
from tests.unit.registry.samples import make_record

CAPABILITY = "page.render"
TASKS = 250


@dataclass(frozen=True, slots=True)
class Renderer:
    """An agent, with the milliseconds that a page takes it, and the share of pages at which it fails."""

    name: str
    milliseconds: float
    failing: float = 0.0

    def agent(self) -> Agent:
        """Declare it with four slots."""
        chance, agent = random.Random(self.name), Agent(self.name, slots=4)

        @agent.capability(CAPABILITY)
        async def render(page: str) -> str:
            await asyncio.sleep(self.milliseconds / 1000 * chance.uniform(0.8, 1.2))
            if chance.random() < self.failing:
                raise RuntimeError("no page")
            return self.name

        return agent


SLOW_AND_FLAKY = (Renderer("a", 50), Renderer("b", 50), Renderer("slow", 500), Renderer("flaky", 50, failing=0.5))
UNIFORM = tuple(Renderer(name, 50) for name in "abcd")


async def mean_seconds(renderers: Sequence[Renderer], strategy: Strategy, *, per_second: float) -> float:
    """Return how long a task takes, on average, from its submit to its result."""
    took: list[float] = []
    done: Counter[str] = Counter()
    arrivals = random.Random(7)
    async with TestFleet([one.agent() for one in renderers], seed=7) as fleet:
        now = asyncio.get_running_loop().time

        async def one_task() -> None:
            began = now()
            handle = await fleet.submit(CAPABILITY, "page", strategy=strategy)
            done[await handle.result(timeout="5m")] += 1
            took.append(now() - began)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(TASKS):
                tasks.create_task(one_task())
                await asyncio.sleep(arrivals.expovariate(per_second))
    return statistics.mean(took)


@pytest.mark.proof
async def test_adaptive_beats_others_where_one_is_slow_and_one_fails() -> None:
    took = {
        strategy: await mean_seconds(SLOW_AND_FLAKY, strategy, per_second=60)
        for strategy in (Strategy.ROUND_ROBIN, Strategy.LEAST_BUSY, Strategy.ADAPTIVE)
    }

    assert took[Strategy.ADAPTIVE] < 0.8 * took[Strategy.LEAST_BUSY]
    assert took[Strategy.ADAPTIVE] < 0.8 * took[Strategy.ROUND_ROBIN]


async def test_adaptive_is_as_good_as_least_busy_where_all_are_alike() -> None:
    least_busy, learned = [
        await mean_seconds(UNIFORM, strategy, per_second=250) for strategy in (Strategy.LEAST_BUSY, Strategy.ADAPTIVE)
    ]

    assert learned < 1.05 * least_busy


@pytest.mark.proof
async def test_recovered_agent_gets_its_share_again() -> None:
    well = Renderer("well", 50).agent()
    moment = {"milliseconds": 500.0}
    changing = Agent("changing", slots=4)

    @changing.capability(CAPABILITY)
    async def render(page: str) -> str:
        await asyncio.sleep(moment["milliseconds"] / 1000)
        return "changing"

    async def share(fleet: TestFleet) -> float:
        done: Counter[str] = Counter()
        for _ in range(TASKS):
            handle = await fleet.submit(CAPABILITY, "page", strategy=Strategy.ADAPTIVE)
            done[await handle.result(timeout="1m")] += 1
        return done["changing"] / TASKS

    async with TestFleet([well, changing], seed=7) as fleet:
        before = await share(fleet)
        moment["milliseconds"] = 10.0
        for _ in range(3):
            await share(fleet)
        after = await share(fleet)

    assert before <= 2 / EXPLORE_EVERY
    assert after > 0.5


def recent(kind: TaskKind, *, attempts: float = 20, ms: float = 50, success: float = 1.0) -> RecentOutcomes:
    return RecentOutcomes(kind, attempts, ms, success)


def test_agents_are_chosen_by_what_was_learned_of_the_kind_of_input_and_new_ones_as_the_best() -> None:
    small, large = KIND, task_kind("code.review", 100_000)
    sprinter = make_record("sprinter", recent=(recent(small, ms=5), recent(large, ms=900)))
    carrier = make_record("carrier", recent=(recent(small, ms=50), recent(large, ms=90)))

    chosen = [choose([sprinter, carrier], Strategy.ADAPTIVE, kind, turn=1, chance=0.5) for kind in (small, large)]

    assert chosen == [sprinter, carrier]

    known = [
        make_record("a", recent=(recent(KIND, ms=50),), running=1),
        make_record("b", recent=(recent(KIND, ms=80),)),
    ]
    new = make_record("new")

    assert choose([*known, new], Strategy.ADAPTIVE, KIND, turn=1, chance=0.0) == new


def test_one_choice_in_twenty_tries_the_agents_by_turns_also_in_a_batch() -> None:
    records = [make_record(name, recent=(recent(KIND, ms=ms),)) for name, ms in (("a", 1), ("b", 99), ("c", 999))]

    chosen = [choose(records, Strategy.ADAPTIVE, KIND, turn=turn, chance=0.0) for turn in range(60 * EXPLORE_EVERY)]

    assert Counter(one.agent_id for one in chosen if one is not None) == {
        "a": 60 * EXPLORE_EVERY - 40,
        "b": 20,
        "c": 20,
    }

    roomy = [make_record(name, slots=40, recent=(recent(KIND, ms=ms),)) for name, ms in (("a", 1), ("b", 999))]

    given = assign(roomy, EXPLORE_EVERY, Strategy.ADAPTIVE, KIND, turn=EXPLORE_EVERY - 5)

    assert Counter(given) == {"a": EXPLORE_EVERY - 1, "b": 1}


def test_old_attempts_fade() -> None:
    outcomes = unknown(KIND)
    for _ in range(100):
        outcomes = outcomes.after(1000, completed=False)
    assert 19 < outcomes.attempts < 20
    for _ in range(100):
        outcomes = outcomes.after(10, completed=True)

    assert outcomes.mean_ms < 20
    assert outcomes.success > 0.99
    assert outcomes.faded(10).attempts == pytest.approx(outcomes.attempts / 2)
