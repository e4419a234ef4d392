"""Writes the manifests that are made of `deploy/observability`, since kustomize reads no file outside of its folder.

    python scripts/observability_manifests.py

`k8s/components/monitoring/alerts.yaml` is the PrometheusRule of the alerts. `k8s/components/observability/files.yaml`
has the ConfigMaps of Prometheus, Grafana, Loki and the collector.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
FROM = ROOT / "deploy" / "observability"
COMPONENTS = ROOT / "k8s" / "components"
HEADER = "# Written by scripts/observability_manifests.py from deploy/observability.\n"
SCRAPE = {
    "job_name": "coditect",
    "dns_sd_configs": [
        {"names": names, "type": "A", "port": port, "refresh_interval": "15s"}
        for names, port in ((["agents", "dispatchers"], 9100), (["apis"], 8009))
    ],
}
"""The pods of the fleet, by three headless Services."""


def config_map(name: str, files: dict[str, str], **labels: str) -> dict[str, Any]:
    """Return a ConfigMap that holds files by their names."""
    metadata = {"name": name, **({"labels": labels} if labels else {})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files}


def documents() -> dict[Path, list[dict[str, Any]]]:
    """Return the manifests by the files that hold them."""
    rules = yaml.safe_load((FROM / "alerts.yaml").read_text(encoding="utf-8"))
    prometheus = yaml.safe_load((FROM / "prometheus.yaml").read_text(encoding="utf-8")) | {"scrape_configs": [SCRAPE]}
    grafana = FROM / "grafana"
    dashboards = {file.name: file.read_text(encoding="utf-8") for file in sorted((grafana / "dashboards").iterdir())}
    sources = (grafana / "provisioning" / "datasources" / "coditect.yaml").read_text(encoding="utf-8")
    folders = (grafana / "provisioning" / "dashboards" / "coditect.yaml").read_text(encoding="utf-8")
    rule = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": {"name": "coditect"}}
    return {
        COMPONENTS / "monitoring" / "alerts.yaml": [{**rule, "spec": rules}],
        COMPONENTS / "observability" / "files.yaml": [
            config_map(
                "prometheus",
                {"prometheus.yaml": json.dumps(prometheus, indent=1), "alerts.yaml": json.dumps(rules, indent=1)},
            ),
            config_map("loki", {"loki.yaml": (FROM / "loki.yaml").read_text(encoding="utf-8")}),
            config_map("collector", {"collector.yaml": (FROM / "collector.yaml").read_text(encoding="utf-8")}),
            config_map("grafana-sources", {"coditect.yaml": sources}),
            config_map("grafana-folders", {"coditect.yaml": folders}),
            config_map("grafana-dashboards", dashboards, grafana_dashboard="1"),
        ],
    }


def text(manifests: list[dict[str, Any]]) -> str:
    """Return the text of a file of manifests."""
    return HEADER + yaml.safe_dump_all(manifests, sort_keys=False, width=1_000)


def main() -> None:
    """Write every file."""
    for file, manifests in documents().items():
        file.write_text(text(manifests), encoding="utf-8")


if __name__ == "__main__":
    main()
