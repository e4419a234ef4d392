"""The size of a benchmark run, full or quick, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """The counts, times and repetitions of every part of a run."""

    rounds: int
    """Alternating rounds of each side."""
    tasks: int
    """Tasks of one throughput round."""
    warm_up: int
    """Tasks before each throughput round that do not count."""
    round_trips: int
    """Round trips of each side, over all rounds."""
    backlog: int
    """P2 tasks that are queued while P0 tasks arrive."""
    urgent: int
    """P0 tasks that arrive one by one."""
    flood_seconds: float
    idle_seconds: float
    repeats: int
    """Repetitions of short measurements: a command's start, the waves of 100 ms tasks."""
    others_rounds: int
    """Alternating rounds beside the task queues that people use."""
    others_tasks: int
    scaling_rounds: int
    """Alternating rounds of each step of each plot."""
    scaling_tasks: int
    profiled_tasks: int
    depths: tuple[int, ...]
    """The numbers of tasks in the backlogs; the first 500 of each are its warm-up."""
    graph_rounds: int
    """Alternating rounds of workflows beside others."""
    graph_runs: int
    """Runs of each graph in a round."""
    graph_width: int
    """Nodes of a fan; a layer of the layered graph has a tenth."""
    graph_length: int
    graph_layers: int
    large_graphs: tuple[int, ...]
    """The numbers of nodes of one workflow, each ten times the one before."""
    small_graphs: tuple[int, ...]
    """The numbers of workflows of ten nodes, each ten times the one before."""
    cost_graphs: tuple[int, ...]
    """The numbers of nodes of the workflows whose cost for the dispatcher is measured."""
    submitted_graphs: tuple[int, ...]
    """The numbers of nodes of the workflows of which the submit is measured."""
    graph_pairs: int
    """How often two sizes that differ by ten times run side by side, on either core."""
    graph_visit: int
    """Nodes of one visit (a measurement on one core) to the larger size, in one run or in several runs in a row."""
    state_queries: int
    live_nodes: int
    """Nodes that wait while a dispatcher starts again."""
    paused_holders: int
    """Holders of locks that are paused past their TTL, 500 at once."""
    probe_intervals: int
    """The length of a dependency's outage, in probe intervals of its breaker."""
    schedules: int
    ticking_seconds: float
    """The time for which the ticks of all schedules are watched."""
    timers: int
    """Nodes that wait for the same instant."""


FULL = Size(
    rounds=5,
    tasks=20_000,
    warm_up=1_000,
    round_trips=2_000,
    backlog=20_000,
    urgent=100,
    flood_seconds=15.0,
    idle_seconds=20.0,
    repeats=10,
    others_rounds=3,
    others_tasks=5_000,
    scaling_rounds=3,
    scaling_tasks=6_000,
    profiled_tasks=150_000,
    depths=(1_000, 10_000, 100_000, 1_000_000),
    graph_rounds=5,
    graph_runs=3,
    graph_width=1_000,
    graph_length=100,
    graph_layers=10,
    large_graphs=(1_000, 10_000, 100_000),
    small_graphs=(1_000, 10_000),
    cost_graphs=(1_000, 20_000, 100_000),
    submitted_graphs=(1_000, 10_000),
    graph_pairs=2,
    graph_visit=50_000,
    state_queries=1_000,
    live_nodes=100_000,
    paused_holders=10_000,
    probe_intervals=10,
    schedules=10_000,
    ticking_seconds=60.0,
    timers=10_000,
)
QUICK = Size(
    rounds=1,
    tasks=2_000,
    warm_up=200,
    round_trips=200,
    backlog=2_000,
    urgent=40,
    flood_seconds=4.0,
    idle_seconds=4.0,
    repeats=3,
    others_rounds=1,
    others_tasks=1_000,
    scaling_rounds=1,
    scaling_tasks=1_000,
    profiled_tasks=20_000,
    depths=(1_000, 10_000, 20_000),
    graph_rounds=1,
    graph_runs=1,
    graph_width=300,
    graph_length=30,
    graph_layers=10,
    large_graphs=(300, 3_000),
    small_graphs=(30, 300),
    cost_graphs=(300, 3_000),
    submitted_graphs=(300, 3_000),
    graph_pairs=1,
    graph_visit=3_000,
    state_queries=200,
    live_nodes=1_000,
    paused_holders=1_000,
    probe_intervals=3,
    schedules=1_000,
    ticking_seconds=20.0,
    timers=1_000,
)
