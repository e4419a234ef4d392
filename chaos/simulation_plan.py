"""The plan of a simulated run: the kinds of work and faults that a seed's number selects, and their rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from chaos.failpoints import Failpoint
from chaos.load.generators import LONGEST_MILLISECONDS
from chaos.load.pace import Pace
from chaos.simulated_nemesis import BROKER_KINDS, KINDS
from chaos.simulated_store import Faults

STORE_FAULTS = Faults(
    conflict=0.02,
    unknown_committed=0.01,
    unknown_lost=0.01,
    too_old=0.005,
    latency_seconds=(0.0002, 0.004),
    read_seconds=(0.0, 0.001),
)


PACE = Pace(workflows=2, tasks=2, width=3, milliseconds=(1, 1_500), wait_seconds=1_000.0, task_seconds=60.0)
LONGEST_TASK_SECONDS = 500.0
LONG_EVERY = 7
"""The divisor of the seeds whose task lengths span five orders of magnitude; they last three times as long."""
LONE_EVERY = 10
"""The divisor of the seeds with rare faults, so that the effect of each fault can be measured."""
LONE_SECONDS = (8.0, 10.0)
LONE_PLAN_SECONDS = 22.0
FAMILIES = 4
"""The last digit of the seeds whose direct tasks come in waves and each await a child, with one fault a run."""
PARENTS = 60
"""The number of tasks in a wave: many times the slots of all agents."""
FAMILY_PLAN_SECONDS = 12.0
TURNS: Mapping[int, Mapping[str, Any]] = {2: {"handed": 12}, 3: {"keyed": 12}, 5: {"locks": 12}}
"""The last digits of the seeds whose tasks change hands, or take turns at a few keys or locks, and the wave's size."""
REPEATED = 12
"""How much more often than others requests arrive again or late in those seeds."""
COORDINATING = 6
"""The last digit of the seeds whose tasks call a dependency that fails, beside schedules that tick."""
CALLS = 8
"""The number of tasks in a wave that call the dependency."""
COORDINATING_SECONDS = 25.0
PART_SECONDS = 20.0
PARTS_EVERY = 100
PARTS_OF = MappingProxyType(
    {
        11: {"contests": 3},
        21: {"patterns": 3},
        31: {"threads": 2},
        41: {"votes": 3},
        51: {"triggers": 2},
        61: {"sub-workflows": 3},
        71: {"rates": 3},
        81: {"streams": 4},
        91: {"restores": 3},
    }
)
"""By the last two digits of a seed: the optional parts of its load, and how many of each run at once."""
POLICED_SECONDS = 20.0
POLICED = 8
"""The last digit of the seeds whose workflows ask for approvals by a policy."""
RESTARTED = 17
"""The last two digits of the seeds whose broker restarts and loses connections, and whose agents all live."""
RESTARTED_SECONDS = 30.0
POISONED = 27
"""The last two digits of the seeds with tasks that end their agents or swallow cancellations, beside rare faults."""
POISON = MappingProxyType({"suicides": 1, "swallowed cancellations": 2})
WIDE = 9
"""The last digit of the seeds with long maps, on a store too slow to read their elements one by one."""
ELEMENTS = 400
SLOW_STORE = replace(STORE_FAULTS, read_seconds=(0.0, 0.03))


@dataclass(frozen=True, slots=True)
class SimulationPlan:
    """The parameters of one seed's simulated run."""

    seconds: float = 6.0
    """The virtual time in which faults are injected."""
    calm_seconds: float = 0.0
    """The time for which the load goes on after the last fault, for promises that are judged without faults."""
    settle_seconds: float = 1_200.0
    """The longest time after the load's close in which begun work must end."""
    dispatchers: int = 2
    agents: int = 3
    shards: int = 2
    between_seconds: tuple[float, float] = (0.2, 1.2)
    """The shortest and longest pause between two faults."""
    die_at_a_call: float = 0.004
    """The share of failpoints, before and after a dispatcher's port calls, at which the dispatcher is killed."""
    wiped: float = 0.4
    """The share of the broker's restarts at which its messages are lost."""
    kinds: Sequence[str] = KINDS
    """The kinds of faults to draw from; a kind that is given twice comes twice as often."""
    die_at: Failpoint | None = None
    """The failpoint at which the first dispatcher to reach it is killed; then there are no other faults."""
    on_record: float = 0.5
    """The share of dispatchers that claim nodes when they record results; in the others RQ proposes the nodes."""
    pace: Pace = PACE
    store: Faults = STORE_FAULTS


MUTATED = SimulationPlan(settle_seconds=400.0)
"""The plan for a seed with a mutant, with a shorter wait for work that the mutant may keep from ending."""


def planned(seed: int, plan: SimulationPlan) -> SimulationPlan:
    """Return the given plan, changed by the seed's number: longer tasks, rarer faults, or other work such as locks."""
    if seed % LONG_EVERY == 0 or seed % PARTS_EVERY == RESTARTED:
        pace = replace(plan.pace, milliseconds=(1, LONGEST_MILLISECONDS), task_seconds=LONGEST_TASK_SECONDS)
        plan = replace(plan, pace=pace)
    if plan.die_at is not None:
        return plan
    lone = replace(plan, between_seconds=LONE_SECONDS, die_at_a_call=0.0)
    if (parts := PARTS_OF.get(seed % PARTS_EVERY)) is not None:
        plan = replace(plan, seconds=PART_SECONDS, pace=replace(plan.pace, workflows=1, tasks=0, parts=parts))
    elif seed % PARTS_EVERY == RESTARTED:
        plan = replace(plan, seconds=RESTARTED_SECONDS, kinds=BROKER_KINDS, wiped=0.0, die_at_a_call=0.0)
    elif seed % PARTS_EVERY == POISONED:
        plan = replace(lone, seconds=LONE_PLAN_SECONDS, pace=replace(plan.pace, workflows=1, parts=POISON))
    elif seed % LONE_EVERY == 0:
        plan = replace(lone, seconds=LONE_PLAN_SECONDS)
    elif seed % LONE_EVERY == FAMILIES:
        pace = replace(plan.pace, workflows=0, tasks=1, parents=PARENTS)
        plan = replace(lone, seconds=FAMILY_PLAN_SECONDS, pace=pace)
    else:
        plan = _by_last_digit(seed % LONE_EVERY, plan)
    return plan


def _by_last_digit(digit: int, plan: SimulationPlan) -> SimulationPlan:
    """Return the given plan with the work of the seeds that end in a digit."""
    if (turns := TURNS.get(digit)) is not None:
        kinds = (*plan.kinds, *(("request.send",) * REPEATED if "request.send" in plan.kinds else ()))
        plan = replace(plan, kinds=kinds, pace=replace(plan.pace, workflows=1, tasks=0, **turns))
    elif digit == COORDINATING:
        pace = replace(plan.pace, workflows=1, tasks=0, calls=CALLS, schedules=1)
        plan = replace(plan, seconds=COORDINATING_SECONDS, pace=pace)
    elif digit == POLICED:
        plan = replace(plan, pace=replace(plan.pace, workflows=1, tasks=0, policed=2), seconds=POLICED_SECONDS)
    elif digit == WIDE:
        pace = replace(plan.pace, workflows=0, tasks=0, elements=ELEMENTS)
        plan = replace(plan, pace=pace, store=SLOW_STORE)
    return plan
