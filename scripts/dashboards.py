"""Writes the Grafana dashboards of `deploy/observability/grafana/dashboards` from the panels below.

    python scripts/dashboards.py

The names of metrics and labels are those of `coditect/telemetry/metrics.py`; tests/observability checks each query.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "observability" / "grafana" / "dashboards"
WIDTH, HEIGHT = 8, 8
"""The size of a panel, on a grid that is 24 wide."""
RATE = "$__rate_interval"


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: a title, a unit of Grafana's, and its queries with the legend of each."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    description: str = ""


def rate(counter: str, *by: str) -> str:
    """Return the query of a counter's rate per second."""
    return f"sum{_by(*by)} (rate({counter}[{RATE}]))"


def quantile(share: float, histogram: str, *by: str) -> str:
    """Return the query of a histogram's quantile over the last moments."""
    return f"histogram_quantile({share}, sum{_by('le', *by)} (rate({histogram}_bucket[{RATE}])))"


def slowest(histogram: str) -> str:
    """Return the query of the highest value of the last moments; 0 if there was none."""
    highest = f"histogram_quantile(1, sum by (le) (increase({histogram}_bucket[{RATE}])))"
    return f"({highest} >= 0) or vector(0)"


def _by(*labels: str) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def quantiles(title: str, histogram: str, *by: str, description: str = "") -> Panel:
    """Return a panel of a histogram's median and 99th percentile, in seconds."""
    named = "".join(f"{{{{{label}}}}} " for label in by)
    queries = tuple(
        (quantile(share, histogram, *by), f"{named}{name}") for share, name in ((0.5, "p50"), (0.99, "p99"))
    )
    return Panel(title, "s", queries, description=description)


DASHBOARDS = {
    "fleet": (
        "Coditect: fleet",
        (
            Panel("Living agents", "short", (("max(coditect_registry_size)", "agents"),), "stat"),
            Panel(
                "Agents by capability",
                "short",
                (("max by (capability) (coditect_capability_agents)", "{{capability}}"),),
            ),
            Panel("Slots", "short", (("sum by (state) (coditect_agent_slots)", "{{state}}"),)),
            Panel(
                "Attempts per second", "ops", ((rate("coditect_agent_requests_total", "capability"), "{{capability}}"),)
            ),
            quantiles("Run time", "coditect_agent_request_duration_seconds", "capability"),
            Panel(
                "Errors and timeouts per second",
                "ops",
                (
                    (rate("coditect_agent_request_errors_total", "capability"), "{{capability}} errors"),
                    (rate("coditect_agent_request_timeouts_total", "capability"), "{{capability}} timeouts"),
                ),
            ),
            Panel(
                "Waiting tasks",
                "short",
                (("max by (capability, priority) (coditect_queue_depth)", "{{capability}} {{priority}}"),),
            ),
            Panel(
                "Oldest waiting task, at most",
                "s",
                (("max by (capability, priority) (coditect_queue_oldest_age_seconds)", "{{capability}} {{priority}}"),),
                description="The time since the queue was last seen empty: no task in it is older.",
            ),
            Panel("Consumers", "short", (("max by (capability) (coditect_queue_consumers)", "{{capability}}"),)),
            quantiles("Wait for a slot", "coditect_task_queue_wait_seconds", "capability"),
            Panel("Heartbeats overdue", "s", (("max by (instance) (coditect_heartbeat_lag_seconds)", "{{instance}}"),)),
            Panel(
                "Versions",
                "short",
                (("count by (version, python) (coditect_build_info)", "{{version}} on {{python}}"),),
                "stat",
            ),
            Panel("CPU", "percentunit", ((f"rate(process_cpu_seconds_total[{RATE}])", "{{instance}}"),)),
            Panel("Memory", "bytes", (("process_resident_memory_bytes", "{{instance}}"),)),
            quantiles("Delay of the event loops", "coditect_event_loop_lag_seconds", "instance"),
        ),
    ),
    "workflows": (
        "Coditect: workflows",
        (
            Panel("Active workflows", "short", (("sum(coditect_workflows_active)", "active"),), "stat"),
            Panel("Accepted per second", "ops", ((rate("coditect_workflows_accepted_total"), "accepted"),)),
            Panel("Failures per second", "ops", ((rate("coditect_workflow_failures_total"), "failed"),)),
            Panel(
                "Ends per second", "ops", ((rate("coditect_workflow_duration_seconds_count", "state"), "{{state}}"),)
            ),
            quantiles("Duration of workflows", "coditect_workflow_duration_seconds"),
            quantiles("Duration by workflow", "coditect_workflow_named_duration_seconds", "workflow"),
            Panel(
                "Bottleneck nodes: seconds per second",
                "short",
                ((f"topk(5, {rate('coditect_workflow_node_duration_seconds_sum', 'node')})", "{{node}}"),),
                description=(
                    "The nodes whose last attempts take most of the time, with their waits for agents and signals. "
                    "Attempts before the last, and the waits between, do not count."
                ),
            ),
            Panel("Checkpoints per second", "ops", ((rate("coditect_checkpoints_total", "action"), "{{action}}"),)),
            Panel("Size of the ledger", "bytes", (("max(coditect_store_bytes)", "SQLite"),)),
            Panel("Ended nodes per second", "ops", ((rate("coditect_workflow_steps_total", "state"), "{{state}}"),)),
            Panel(
                "Shards", "short", (("max(coditect_shards)", "all"), ("sum(coditect_shards_owned)", "with an owner"))
            ),
            quantiles("Commits of the ledger", "coditect_store_commit_seconds"),
            Panel(
                "Commits per second",
                "ops",
                ((rate("coditect_store_commit_seconds_count", "instance"), "{{instance}}"),),
            ),
            quantiles("Lateness of schedules", "coditect_schedule_lateness_seconds"),
            Panel("Jobs mended in RQ per second", "ops", ((rate("coditect_jobs_mended_total"), "mended"),)),
            Panel(
                "Refused results and commits per second",
                "ops",
                (
                    (rate("coditect_results_refused_total", "reason"), "{{reason}}"),
                    (rate("coditect_commits_refused_total"), "commits"),
                ),
            ),
            Panel(
                "Events to triggers per second",
                "ops",
                ((rate("coditect_trigger_events_total", "outcome"), "{{outcome}}"),),
            ),
        ),
    ),
    "resources": (
        "Coditect: resources and locks",
        (
            Panel("Locks held", "short", (("sum(coditect_locks_active)", "held"),), "stat"),
            Panel("Locks waited for", "short", (("sum(coditect_locks_waiting)", "waiting"),), "stat"),
            Panel(
                "Longest present wait",
                "s",
                (("max by (instance) (coditect_lock_longest_wait_seconds)", "{{instance}}"),),
            ),
            quantiles("Waits for locks", "coditect_lock_wait_seconds"),
            Panel(
                "Waits for locks: heat map",
                "s",
                ((f"sum by (le) (increase(coditect_lock_wait_seconds_bucket[{RATE}]))", "{{le}}"),),
                "heatmap",
                "How many locks were granted after which wait.",
            ),
            Panel(
                "Contentions and timeouts per second",
                "ops",
                (
                    (rate("coditect_lock_contentions_total"), "contentions"),
                    (rate("coditect_lock_timeouts_total"), "timeouts"),
                ),
            ),
            Panel(
                "Look-ups in the registry per second",
                "ops",
                ((rate("coditect_registry_lookups_total", "outcome"), "{{outcome}}"),),
            ),
            quantiles("Look-ups in the registry", "coditect_registry_lookup_seconds"),
            Panel(
                "Clock ahead of the registry's",
                "s",
                (("max by (instance) (coditect_clock_skew_seconds)", "{{instance}}"),),
            ),
            Panel("Broker connected", "bool_yes_no", (("min by (instance) (coditect_broker_up)", "{{instance}}"),)),
            Panel(
                "Registry answers",
                "bool_yes_no",
                (("min by (instance) (coditect_registry_up) and on (instance) coditect_shards", "{{instance}}"),),
                description="As the dispatchers see it, which look twice a second.",
            ),
            Panel("Open files", "short", (("process_open_fds", "{{instance}}"),)),
        ),
    ),
    "resilience": (
        "Coditect: resilience",
        (
            Panel("Alerts", "short", (('count by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}"),)),
            Panel("Dead letters", "short", (("max by (capability) (coditect_dead_letters)", "{{capability}}"),)),
            Panel(
                "Open breakers",
                "short",
                (('max by (name) (coditect_circuit_breaker_state{state="open"})', "{{name}}"),),
            ),
            Panel(
                "Attempts by outcome per second",
                "ops",
                ((rate("coditect_task_attempts_total", "outcome"), "{{outcome}}"),),
            ),
            Panel(
                "Agents lost and connections evicted per second",
                "ops",
                (
                    (rate("coditect_agents_lost_total"), "lost"),
                    (rate("coditect_connections_evicted_total"), "evicted"),
                ),
            ),
            Panel(
                "Slowest recovery and release of locks",
                "s",
                (
                    (slowest("coditect_agent_recovery_seconds"), "work"),
                    (slowest("coditect_agent_locks_freed_seconds"), "locks"),
                ),
                description="From a lost agent's last sign of life, rounded up to a bucket; 0 while none was lost.",
            ),
            Panel(
                "Loops started again per second",
                "ops",
                ((rate("coditect_loop_restarts_total", "instance"), "{{instance}}"),),
            ),
            Panel(
                "Undeliverable tasks per second",
                "ops",
                ((rate("coditect_undeliverable_tasks_total", "outcome"), "{{outcome}}"),),
            ),
            Panel(
                "Replies without a receiver per second",
                "ops",
                (
                    (rate("coditect_replies_stray_total"), "stray"),
                    (rate("coditect_replies_unclaimed_total"), "unclaimed"),
                ),
            ),
            Panel(
                "Events dropped per second",
                "ops",
                ((rate("coditect_events_dropped_total", "instance"), "{{instance}}"),),
            ),
            Panel(
                "Certificates end in",
                "s",
                (("min by (server) (coditect_certificate_end_timestamp_seconds) - time()", "{{server}}"),),
                "stat",
                "Only with TLS.",
            ),
            Panel(
                "Posts to HTTP agents per second",
                "ops",
                ((rate("coditect_http_agent_attempts_total", "outcome"), "{{outcome}}"),),
            ),
            Panel(
                "Posts to webhooks per second",
                "ops",
                (
                    (rate("coditect_webhook_attempts_total", "outcome"), "{{outcome}}"),
                    (rate("coditect_webhooks_disabled_total"), "disabled"),
                ),
            ),
            Panel(
                "Posts to webhooks: seconds",
                "s",
                ((quantile(0.99, "coditect_webhook_attempt_duration_seconds"), "p99"),),
            ),
        ),
    ),
}


def dashboard(uid: str, title: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """Return a dashboard in Grafana's JSON model, with the log of the fleet below its panels."""
    drawn = [_panel(number, panel) for number, panel in enumerate(panels)]
    below = HEIGHT * -(-len(panels) // 3)
    return {
        "uid": f"coditect-{uid}",
        "title": title,
        "tags": ["coditect"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "links": [{"type": "dashboards", "title": "Coditect", "tags": ["coditect"], "asDropdown": True}],
        "panels": [*drawn, _log(len(panels), below)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "prometheus"}
    return {
        "id": number + 1,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": source,
        "gridPos": {"x": WIDTH * (number % 3), "y": HEIGHT * (number // 3), "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(65 + index),
                "datasource": source,
                "expr": expression,
                "legendFormat": legend,
                "format": "heatmap" if panel.kind == "heatmap" else "time_series",
                "exemplar": True,
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _log(number: int, below: int) -> dict[str, Any]:
    source = {"type": "loki", "uid": "loki"}
    return {
        "id": number + 1,
        "type": "logs",
        "title": "Warnings and errors",
        "datasource": source,
        "gridPos": {"x": 0, "y": below, "w": 24, "h": HEIGHT},
        "options": {"showTime": True, "wrapLogMessage": True, "enableLogDetails": True},
        "targets": [{"refId": "A", "datasource": source, "expr": '{app="coditect"} | json | level =~ "warning|error"'}],
    }


def documents() -> dict[str, str]:
    """Return the text of each dashboard's file, by its name."""
    return {
        f"{uid}.json": json.dumps(dashboard(uid, title, panels), indent=1) + "\n"
        for uid, (title, panels) in DASHBOARDS.items()
    }


def main() -> None:
    """Write all dashboards."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
