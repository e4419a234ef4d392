"""Fleets for property tests, and one that carries out what is given to it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hypothesis import strategies as st

from coditect.model.capability import Wanted
from coditect.model.prediction import RecentOutcomes, task_kind
from coditect.model.registration import AgentRecord, AgentStatus
from tests.unit.registry.samples import make_record

chances = st.floats(0, 1, exclude_max=True)
tag_sets = st.frozensets(st.sampled_from(["gpu", "python", "eu", "fast"]))
some_wanted = st.builds(
    Wanted,
    tags=tag_sets,
    capabilities=st.frozensets(st.sampled_from(["code.review", "text.summarize"])),
    keywords=st.frozensets(st.sampled_from(["MISTAKES", "agent", "nothing"])),
)

KIND = task_kind("code.review", 100)
_recent = st.builds(
    RecentOutcomes,
    st.sampled_from([KIND, task_kind("code.review", 10_000), task_kind("text.summarize", 100)]),
    st.floats(1, 20),
    st.sampled_from([1.5, 20.0, 60_000.0]),
    st.floats(0, 1),
)
_any_record = st.builds(
    make_record,
    st.text(alphabet="abc", min_size=1, max_size=3).map("agent-{}".format),
    status=st.sampled_from(AgentStatus),
    slots=st.integers(0, 8),
    running=st.integers(0, 12),
    suspended=st.integers(0, 5),
    latency_ms=st.sampled_from([0.0, 1.5, 20.0, 60_000.0]),
    cpu_percent=st.sampled_from([0.0, 30.0, 100.0, 390.0]),
    resident_bytes=st.integers(0, 1 << 40),
    completed=st.integers(0, 1_000),
    failed=st.integers(0, 1_000),
    failed_attempts=st.integers(0, 1_000),
    lease_ms=st.sampled_from([0, 1, 3_000]),
    tags=tag_sets,
    recent=st.lists(_recent, max_size=3, unique_by=lambda outcomes: outcomes.kind).map(tuple),
)
records_of_any_kind = st.lists(_any_record, max_size=8, unique_by=lambda record: record.agent_id)

Pick = Callable[[Sequence[AgentRecord]], AgentRecord | None]


@dataclass(slots=True)
class SimulatedFleet:
    """Agents that run what they get, step by step, and tell their load every `beat` steps only.

    A task takes `steps` of its agent; one in `failing` of them fails.
    """

    told: dict[str, AgentRecord]
    steps: Mapping[str, int]
    failing: Mapping[str, float] = field(default_factory=dict)
    beat: int = 5
    taken: Counter[str] = field(default_factory=Counter)
    _running: list[tuple[int, str]] = field(default_factory=list)
    _true: dict[str, AgentRecord] = field(default_factory=dict)
    _chance: random.Random = field(default_factory=lambda: random.Random(11))

    def run(self, pick: Pick, *, steps: int, arrivals: int) -> Counter[str]:
        """How many tasks each agent got, when so many arrive at each step."""
        self._true = dict(self.told)
        for now in range(steps):
            self._finish(now)
            if now % self.beat == 0:
                self.told = dict(self._true)
            for _ in range(arrivals):
                self._start(pick(tuple(self.told.values())), now)
        return self.taken

    def _start(self, record: AgentRecord | None, now: int) -> None:
        assert record is not None
        self.taken[record.agent_id] += 1
        self._running.append((now + self.steps[record.agent_id], record.agent_id))
        self._change(record.agent_id, running=1)

    def _finish(self, now: int) -> None:
        for _, name in (one for one in self._running if one[0] <= now):
            failed = self._chance.random() < self.failing.get(name, 0)
            self._change(name, running=-1, failed=int(failed), completed=int(not failed))
        self._running = [one for one in self._running if one[0] > now]

    def _change(self, name: str, *, running: int, failed: int = 0, completed: int = 0) -> None:
        record = self._true[name]
        load = record.load
        changed = replace(
            load,
            running=load.running + running,
            failed=load.failed + failed,
            failed_attempts=load.failed_attempts + failed,
            completed=load.completed + completed,
            latency_ms=10.0 * self.steps[name] if load.completed + completed else 0.0,
        )
        self._true[name] = replace(record, load=changed)
