"""The regret of choices of an agent, beside an oracle's: what a task costs more than at the agent that is best for it.

Fleets of four agents that exist on paper, with 1,000 tasks each; in the middle, the agents change their behavior. The
choice and what it learns from are the product's own; the clock and every draw come from a seed, so a run repeats
exactly. No server is needed: `python -m benchmarks.parts.selection` prints the table in seconds.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from benchmarks.report import findings_as_markdown
from benchmarks.size import Size
from benchmarks.stage import Stage
from benchmarks.verdict import Bound, Figure, Findings, Verdict
from coditect.model.capability import Strategy
from coditect.model.ids import AgentId
from coditect.model.prediction import Predictor, TaskKind, task_kind, unknown
from coditect.model.registration import AgentRecord, AgentStatus, Load, Registration
from coditect.registry.scoring import FAILURE_COST_MS, choose
from coditect.wire.json import dumps
from coditect.wire.tasks import input_features

NAME = "selection"
CAPABILITY = "page.render"
TASKS = 1_000
AGENTS = 4
SEEDS = 4
PER_SECOND = 10
"""How many tasks come each second; senders see what the agents have learned once a second."""
SPREAD = 0.25
"""The standard deviation of the logarithm of the run time of equal tasks."""
MOST_RATIO = 1.0
"""The largest regret of `predictive`, as a multiple of that of `adaptive`."""
LANGUAGES = ("ada", "c", "go", "java")


class Truth(NamedTuple):
    """How an attempt really goes: its mean run time in milliseconds, and the share of attempts that fail."""

    ms: float
    failing: float = 0.02

    def cost_ms(self, best_ms: float) -> float:
        """The expected milliseconds until the task is done; a failed attempt runs once more at the quickest agent."""
        return self.ms + self.failing * (FAILURE_COST_MS + best_ms)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fleet on paper: the features that its capability names, and how a task goes at an agent."""

    features: tuple[str, ...]
    truth: Callable[[int, Mapping[str, Any]], Truth]
    """How a task goes, by the number of the agent and the input; in the second half, another agent has this number."""


def _language(agent: int, page: Mapping[str, Any]) -> Truth:
    return Truth(50 if LANGUAGES[agent] == page["language"] else 400)


def _two(agent: int, page: Mapping[str, Any]) -> Truth:
    slow = 1 if LANGUAGES[agent] == page["language"] else 3
    return Truth(50 * slow * (4 if page["deep"] and agent % 2 else 1))


def _both(agent: int, page: Mapping[str, Any]) -> Truth:
    return Truth(500 if page["deep"] and LANGUAGES.index(page["language"]) % 2 == agent % 2 else 50)


def _failing(agent: int, page: Mapping[str, Any]) -> Truth:
    able = (LANGUAGES.index(page["language"]) - agent) % AGENTS > 1
    return Truth(50 + 10 * agent, 0.02 if able else 0.7)


def _pages(agent: int, page: Mapping[str, Any]) -> Truth:
    return Truth(20 + 20 * page["pages"] if agent < 2 else 200 + 2 * page["pages"])


def _rare(agent: int, page: Mapping[str, Any]) -> Truth:
    return Truth(60 if agent == (2 if page["rare"] else 0) else 300)


def _plain(agent: int, _: Mapping[str, Any]) -> Truth:
    return Truth(500 if agent == 0 else 50 + 5 * agent, 0.5 if agent == 1 else 0.02)


SCENARIOS: Mapping[str, Scenario] = {
    "each agent is quick in one language": Scenario(("language",), _language),
    "language, and half of them slow in depth": Scenario(("language", "deep"), _two),
    "depth matters in some languages only": Scenario(("language", "deep"), _both),
    "agents fail in some languages": Scenario(("language",), _failing),
    "by number of pages": Scenario(("pages",), _pages),
    "one agent for a rare kind": Scenario(("rare",), _rare),
    "features say nothing: one slow, one flaky": Scenario(("language", "deep"), _plain),
    "no features: one slow, one flaky": Scenario((), _plain),
    "all alike": Scenario(("language", "deep"), lambda agent, page: Truth(50)),
}


class PaperAgent:
    """An agent on paper, which learns as an agent does, and reports once a second."""

    def __init__(self, number: int, kind: TaskKind) -> None:
        name = f"agent-{number}"
        self.record = AgentRecord(
            Registration(AgentId(name), "agent", "1.0.0", 4, ()), Load(status=AgentStatus.IDLE), lease_ms=3_000
        )
        self._recent, self._last_ms, self._predictor = unknown(kind), 0, Predictor()

    def report(self, now_ms: int) -> None:
        """Let senders see what the agent has learned until now."""
        recent = (self._recent.faded((now_ms - self._last_ms) / 1000),)
        load = replace(self.record.load, recent=recent, learned=self._predictor.weights(now_ms))
        self.record = replace(self.record, load=load)

    def ran(self, ms: float, body: bytes, scenario: Scenario, *, completed: bool, now_ms: int) -> None:
        """Learn from an attempt that has ended."""
        self._recent = self._recent.faded((now_ms - self._last_ms) / 1000).after(ms, completed=completed)
        self._last_ms = now_ms
        if features := input_features(scenario.features, body):
            self._predictor.learn(CAPABILITY, features, ms, completed=completed, now_ms=now_ms)


def page(chance: random.Random) -> dict[str, Any]:
    """Draw the input of one task."""
    return {
        "language": chance.choice(LANGUAGES),
        "deep": chance.random() < 0.5,
        "pages": round(2 ** chance.uniform(0, 8)),
        "rare": chance.random() < 0.1,
    }


def regret(scenario: Scenario, strategy: Strategy, seed: int, *, tasks: int = TASKS) -> float:
    """Return by how many milliseconds a task costs more, on average, than at the agent that is best for it."""
    chance, costs = random.Random(seed), list[float]()
    kind = task_kind(CAPABILITY, 100)
    fleet = [PaperAgent(number, kind) for number in range(AGENTS)]
    for number in range(tasks):
        now_ms = number * 1000 // PER_SECOND
        if not number % PER_SECOND:
            for agent in fleet:
                agent.report(now_ms)
        document = page(chance)
        body, moved = dumps(document), number >= tasks // 2
        named = input_features(scenario.features, body) if strategy is Strategy.PREDICTIVE else ()
        records = [agent.record for agent in fleet]
        chosen = choose(records, strategy, replace(kind, features=named), turn=number, chance=chance.random())
        assert chosen is not None, "all agents live"
        picked = records.index(chosen)
        truths = [scenario.truth((agent + 3 * moved) % AGENTS, document) for agent in range(AGENTS)]
        best_ms = min(truth.ms for truth in truths)
        costs.append(truths[picked].cost_ms(best_ms) - min(truth.cost_ms(best_ms) for truth in truths))
        ms = truths[picked].ms * chance.lognormvariate(0, SPREAD)
        fleet[picked].ran(ms, body, scenario, completed=chance.random() >= truths[picked].failing, now_ms=now_ms)
    return statistics.mean(costs)


def mean_regret(scenario: Scenario, strategy: Strategy, *, seeds: int = SEEDS) -> float:
    """Return the mean regret over several runs."""
    return statistics.mean(regret(scenario, strategy, seed) for seed in range(seeds))


def measure(seeds: int = SEEDS) -> Findings:
    """Compare the regrets of the strategies in every scenario."""
    strategies = (Strategy.ROUND_ROBIN, Strategy.ADAPTIVE, Strategy.PREDICTIVE)
    raw = {
        name: {strategy.value: mean_regret(scenario, strategy, seeds=seeds) for strategy in strategies}
        for name, scenario in SCENARIOS.items()
    }
    verdicts = tuple(
        Verdict(f"{name}: predictive's regret, of adaptive's", _ratio(found), Bound.AT_MOST, MOST_RATIO, "x")
        for name, found in raw.items()
    )
    figures = tuple(
        Figure(f"{name}: {strategy}", ms, "ms") for name, found in raw.items() for strategy, ms in found.items()
    )
    notes = (f"{TASKS} tasks, {AGENTS} agents, {PER_SECOND} tasks a second, the mean of {seeds} seeds",)
    return Findings(NAME, verdicts, figures, raw, notes=notes)


def _ratio(found: Mapping[str, float]) -> float:
    ours, theirs = found[Strategy.PREDICTIVE.value], found[Strategy.ADAPTIVE.value]
    return ours / theirs if theirs else 1.0


async def run(_: Stage, size: Size) -> Findings:
    """Compare the regrets; the size of the run changes nothing, since it takes seconds."""
    return measure()


if __name__ == "__main__":
    print(findings_as_markdown(measure()))
