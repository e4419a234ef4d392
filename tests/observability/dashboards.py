"""The queries of the dashboards and the alerts, as data."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import yaml

from coditect.telemetry import metrics
from coditect.telemetry.metrics import Metric
from tests.observability.prometheus import FOLDER

DASHBOARDS = FOLDER / "grafana" / "dashboards"
ALERTS = yaml.load((FOLDER / "alerts.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)["groups"][0]["rules"]
METRICS = {metric.name: metric for metric in vars(metrics).values() if isinstance(metric, Metric)}
_NAME = re.compile(r"\bcoditect_[a-z_]+")


@dataclass(frozen=True)
class PanelQuery:
    """A query of a panel, with the rate interval of a test instead of Grafana's variable."""

    panel: str
    expression: str


def queries() -> list[PanelQuery]:
    """Every query to Prometheus of every dashboard."""
    found = []
    for file in sorted(DASHBOARDS.glob("*.json")):
        document = json.loads(file.read_text(encoding="utf-8"))
        for panel in document["panels"]:
            for target in panel["targets"]:
                if target["datasource"]["uid"] == "prometheus":
                    expression = target["expr"].replace("$__rate_interval", "30s")
                    found.append(PanelQuery(f"{document['uid']}: {panel['title']}", expression))
    return found


def metrics_of(expression: str) -> set[str]:
    """The names of our metrics in a query, each as it is declared."""
    found = set(_NAME.findall(expression))
    histograms = {name for name, metric in METRICS.items() if metric.buckets}
    return {short if (short := re.sub(r"_(bucket|count|sum)$", "", name)) in histograms else name for name in found}
