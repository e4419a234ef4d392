"""The parameters of a chaos run's load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pace:
    """The parameters of a run's load: the number, size and length of workflows and tasks."""

    workflows: int
    """The number of workflows under way at once."""
    tasks: int
    """The number of direct or durable tasks under way at once."""
    width: int
    """The number of parallel nodes in a layer, and of layers in a row."""
    milliseconds: tuple[int, int]
    """The lengths of the shortest and the longest task; random lengths between, most of them short."""
    long: float = 0.0
    """The share of direct tasks that take longer than `milliseconds` allows, up to the longest of all."""
    soon_milliseconds: tuple[int, int] = (5, 1_500)
    """The shortest and longest time until a workflow is paused or canceled, and until it is resumed."""
    flaky: float = 0.05
    """The share of tasks whose first attempt fails."""
    durable: float = 0.1
    """The share of single tasks that are durable."""
    canceled: float = 0.1
    """The share of workflows that the load cancels before their end."""
    paused: float = 0.1
    """The share of workflows that the load pauses and resumes before their end."""
    hopeless: float = 0.03
    """The share of direct tasks whose attempts all fail."""
    asked_again: float = 0.1
    """The share of submissions that the load repeats under the same key after their acceptance."""
    signaled_again: float = 0.3
    """The share of signals that the load repeats under the same id after their acceptance."""
    parents: int = 0
    """The number of direct tasks in a wave that each await a child; the children end at about the same time."""
    elements: int = 0
    """The number of elements of a long map, of which one runs at a time beside the load; 0 for no long map."""
    locks: int = 0
    """The number of direct tasks in a wave that each take one of a few locks; 0 for no such wave."""
    keyed: int = 0
    """The number of direct tasks in a wave of which one of each key runs at a time; 0 for no such wave."""
    handed: int = 0
    """The number of durable tasks in a wave that are offered to other agents while they run; 0 for no such wave."""
    calls: int = 0
    """The number of direct tasks in a wave that each call a dependency through its breaker; 0 for no such wave."""
    policed: int = 0
    """The number of workflows under way at once whose nodes an approval policy decides about."""
    schedules: int = 0
    """The number of schedules that tick at once; each is made, ticks for some seconds, and is paused."""
    parts: Mapping[str, int] = field(default_factory=dict)
    """How many of each further part of the load are under way at once, by the names in `parts.table`."""
    ticking_seconds: tuple[float, float] = (3.0, 8.0)
    """The shortest and longest time for which a schedule ticks."""
    wait_milliseconds: tuple[int, int] = (1_000, 4_000)
    """The shortest and longest wait of a workflow's node for a time."""
    limited: float = 0.0
    """The share of nodes with time limits so short that faults break them."""
    wait_seconds: float = 300.0
    """The time for which the load waits for the end of a workflow; longer than all faults together."""
    task_seconds: float = 100.0
    """The time for which the load waits for the end of a direct task."""
    patience_seconds: float = 10.0
    """The time after which the load starts another task beside one that has not ended and may be lost."""
