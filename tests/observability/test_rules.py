"""Alerts and dashboards without a fleet: promtool reads them, and they name only what there is."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import yaml

from tests.docs.pages import anchors
from tests.observability.dashboards import ALERTS, DASHBOARDS, METRICS, metrics_of, queries
from tests.observability.prometheus import FOLDER, promtool, short_rules
from tests.servers import ROOT


def test_each_alert_fires_by_its_figures_and_only_then() -> None:
    done = promtool("test", "rules", "alerts_test.yaml")
    tested = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text(encoding="utf-8"))["tests"]

    assert done.returncode == 0, done.stderr
    for wanted in (True, False):
        assert {alert["alert"] for alert in ALERTS} == {
            case["alertname"]
            for test in tested
            for case in test["alert_rule_test"]
            if bool(case["exp_alerts"]) is wanted or case["alertname"] in ONLY_FIRE
        }


ONLY_FIRE = {"CoditectOldTasks"}
"""Its series is that of a test of another alert."""


def test_each_alert_has_its_runbook() -> None:
    page = ROOT / "docs" / "runbooks.md"

    for alert in ALERTS:
        file, _, section = alert["annotations"]["runbook_url"].partition("#")
        assert (ROOT / file, section in anchors(page)) == (page, True), alert["alert"]
        assert f"`{alert['alert']}`" in page.read_text(encoding="utf-8")


def test_queries_name_only_declared_metrics_and_labels() -> None:
    for expression in [*(one.expression for one in queries()), *(one["expr"] for one in ALERTS)]:
        named = metrics_of(expression)
        labels = {label for name in named if name in METRICS for label in METRICS[name].labels}
        groups = re.findall(r"(?:by|on) ?\(([^)]*)\)", expression)

        assert named <= METRICS.keys(), expression
        assert {label.strip() for group in groups for label in group.split(",")} <= labels | {
            "alertname",
            "instance",
            "le",
        }


def test_every_metric_is_on_a_dashboard() -> None:
    shown = {name for one in queries() for name in metrics_of(one.expression)}

    assert shown == METRICS.keys()


def test_every_query_of_the_dashboards_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"one:{number}", "expr": one.expression} for number, one in enumerate(queries())]
    file = tmp_path / "queries.yaml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))

    done = promtool("check", "rules", str(file))

    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_wrong_query_is_found(tmp_path: Path) -> None:
    file = tmp_path / "queries.yaml"
    file.write_text(json.dumps({"groups": [{"name": "queries", "rules": [{"record": "one", "expr": "sum(("}]}]}))

    assert promtool("check", "rules", str(file)).returncode != 0


def test_dashboards_are_as_their_script_writes_them() -> None:
    documents = runpy.run_path(str(ROOT / "scripts" / "dashboards.py"))["documents"]
    written = {file.name: file.read_text(encoding="utf-8") for file in DASHBOARDS.iterdir()}

    assert written == documents(), "python scripts/dashboards.py"


def test_dashboards_and_data_sources_know_each_other() -> None:
    provisioning = FOLDER / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "coditect.yaml").read_text(encoding="utf-8"))
    uids = {source["uid"] for source in sources["datasources"]}
    named = {
        panel["datasource"]["uid"]
        for file in DASHBOARDS.iterdir()
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]
    }

    assert uids == {"prometheus", "loki", "jaeger"}
    assert named <= uids
    assert {file.stem for file in DASHBOARDS.iterdir()} == {"fleet", "workflows", "resources", "resilience"}


def test_rules_of_the_real_test_are_the_same_but_for_their_times() -> None:
    short = yaml.safe_load(short_rules())["groups"][0]["rules"]

    assert [rule["alert"] for rule in short] == [rule["alert"] for rule in ALERTS]
