"""The declarations of all metrics of all programs, the same as the table in `docs/operations.md`."""

from __future__ import annotations

from coditect.telemetry.metrics import LONG, QUICK, Metric

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
WEBHOOK_ATTEMPTS = Metric(
    "coditect_webhook_attempts_total", "posts of events to webhooks, tests among them", {"outcome": ("failed", "taken")}
)
WEBHOOK_SECONDS = Metric(
    "coditect_webhook_attempt_duration_seconds", "durations of posts to webhooks, in seconds", buckets=LONG
)
WEBHOOKS_DISABLED = Metric("coditect_webhooks_disabled_total", "webhooks that were disabled because they took nothing")
AGENTS_LOST = Metric("coditect_agents_lost_total", "agents that died, hung or were cut off")
CONNECTIONS_EVICTED = Metric(
    "coditect_connections_evicted_total", "connections of agents that were closed at the broker"
)
JOBS_MENDED = Metric("coditect_jobs_mended_total", "jobs in RQ that differed from the ledger")

TASK_REQUESTS = Metric("coditect_agent_requests_total", "attempts of tasks that agents ran", {"capability": ()})
TASK_SECONDS = Metric(
    "coditect_agent_request_duration_seconds", "run times of attempts, in seconds", {"capability": ()}, LONG
)
TASK_ERRORS = Metric(
    "coditect_agent_request_errors_total", "attempts that failed, were rejected or canceled", {"capability": ()}
)
TASK_TIMEOUTS = Metric(
    "coditect_agent_request_timeouts_total", "attempts that ran longer than they may", {"capability": ()}
)
QUEUE_WAIT = Metric(
    "coditect_task_queue_wait_seconds", "waits of tasks from their publication to their start", {"capability": ()}, LONG
)
SLOTS = Metric(
    "coditect_agent_slots", "slots of an agent, and tasks that it suspended", {"state": ("busy", "free", "suspended")}
)
HEARTBEAT_LAG = Metric("coditect_heartbeat_lag_seconds", "seconds by which the next heartbeat is overdue")
BREAKER_STATE = Metric(
    "coditect_circuit_breaker_state", "1 for the state in which a breaker is", {"name": (), "state": ("closed", "open")}
)
CLOCK_SKEW = Metric("coditect_clock_skew_seconds", "seconds by which the machine's clock is ahead of the registry's")
LOOP_LAG = Metric("coditect_event_loop_lag_seconds", "delays of a timer on the event loop", buckets=QUICK)
BUILD_INFO = Metric("coditect_build_info", "1, with the versions of Coditect and Python", {"python": (), "version": ()})
CERTIFICATE_END = Metric(
    "coditect_certificate_end_timestamp_seconds", "end of a server's TLS certificate, as a Unix time", {"server": ()}
)

LOCKS_ACTIVE = Metric("coditect_locks_active", "locks that the process holds")
LOCKS_WAITING = Metric("coditect_locks_waiting", "locks for which the process waits")
LOCK_LONGEST = Metric("coditect_lock_longest_wait_seconds", "seconds since the longest present wait for a lock began")
LOCK_WAIT = Metric("coditect_lock_wait_seconds", "waits for locks that were granted", buckets=LONG)
LOCK_CONTENTIONS = Metric("coditect_lock_contentions_total", "requests for a lock that others had")
LOCK_TIMEOUTS = Metric("coditect_lock_timeouts_total", "waits for a lock that ended without it")
LOOKUPS = Metric("coditect_registry_lookups_total", "look-ups in the registry", {"outcome": ("answered", "failed")})
LOOKUP_SECONDS = Metric("coditect_registry_lookup_seconds", "durations of look-ups in the registry", buckets=QUICK)

WORKFLOWS_ACTIVE = Metric("coditect_workflows_active", "workflows with a task that is published or runs")
WORKFLOWS_ACCEPTED = Metric("coditect_workflows_accepted_total", "workflows that were accepted, children among them")
WORKFLOW_SECONDS = Metric(
    "coditect_workflow_duration_seconds",
    "times from the acceptance of workflows to their end",
    {"state": ("canceled", "compensated", "compensation_failed", "completed", "failed", "rejected")},
    LONG,
)
WORKFLOW_STEPS = Metric(
    "coditect_workflow_steps_total",
    "nodes of workflows that ended",
    {"state": ("canceled", "completed", "dead", "failed", "rejected", "skipped")},
)
WORKFLOW_FAILURES = Metric(
    "coditect_workflow_failures_total", "workflows that failed, were rejected, or could not be compensated"
)
SCHEDULE_LATENESS = Metric("coditect_schedule_lateness_seconds", "delays of schedules' ticks", buckets=LONG)
STORE_COMMIT_SECONDS = Metric("coditect_store_commit_seconds", "durations of the ledger's transactions", buckets=QUICK)
SHARDS = Metric("coditect_shards", "shards of the ledger")
SHARDS_OWNED = Metric("coditect_shards_owned", "shards that the dispatcher works for")
REGISTRY_SIZE = Metric("coditect_registry_size", "living agents in the registry")
CAPABILITY_AGENTS = Metric("coditect_capability_agents", "living agents that offer a capability", {"capability": ()})
_LEVEL = {"capability": (), "priority": ("p0", "p1", "p2")}
QUEUE_DEPTH = Metric("coditect_queue_depth", "tasks that wait in a queue", _LEVEL)
QUEUE_OLDEST = Metric(
    "coditect_queue_oldest_age_seconds",
    "seconds since the queue was empty: no task in it is older",
    _LEVEL,
)
QUEUE_CONSUMERS = Metric(
    "coditect_queue_consumers", "consumers of a queue: none of an agent without a free slot", _LEVEL
)
DEAD_LETTERS = Metric("coditect_dead_letters", "dead letters of a capability", {"capability": ()})
