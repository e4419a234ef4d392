"""The declarations of all metrics of all programs, the same as the table in `docs/operations.md`."""

from __future__ import annotations

from coditect.telemetry.metrics import Metric

ATTEMPTS = Metric(
    "coditect_task_attempts_total", "attempts of tasks that ended in the agent", {"outcome": ("completed", "failed")}
)
EVENTS_DROPPED = Metric("coditect_events_dropped_total", "events that were not sent: too many at once, or no broker")
LOOP_RESTARTS = Metric("coditect_loop_restarts_total", "endless loops that died and were started again")
REPLIES_STRAY = Metric("coditect_replies_stray_total", "replies that no caller waits for: late, forged or a second one")
REPLIES_UNCLAIMED = Metric("coditect_replies_unclaimed_total", "replies that were dropped without a receiver")

COMMITS_REFUSED = Metric("coditect_commits_refused_total", "commits to a shard that was another dispatcher's by then")
RESULTS_REFUSED = Metric(
    "coditect_results_refused_total",
    "results of attempts that the ledger did not take",
    {"reason": ("late", "unknown", "unrecorded")},
)
UNDELIVERABLE = Metric(
    "coditect_undeliverable_tasks_total",
    "tasks that no agent ran, by what became of the answer",
    {"outcome": ("answered", "dropped", "failed", "ignored", "unclaimed")},
)
TRIGGER_EVENTS = Metric(
    "coditect_trigger_events_total", "events that came to triggers", {"outcome": ("taken", "unreadable")}
)
AGENTS_LOST = Metric("coditect_agents_lost_total", "agents that died, hung or were cut off")
CONNECTIONS_EVICTED = Metric(
    "coditect_connections_evicted_total", "connections of agents that were closed at the broker"
)
JOBS_MENDED = Metric("coditect_jobs_mended_total", "jobs in RQ that differed from the ledger")
