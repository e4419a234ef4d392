"""A real Prometheus, Debian's, over whatever targets a test names."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

from coditect.local.servers import free_ports
from tests.servers import ROOT
from tests.support import eventually

FOLDER = ROOT / "deploy" / "observability"
SHORTER = {"[5m]": "[10s]", "for: 1m": "for: 1s", "for: 30s": "for: 1s", "> 300": "> 3", "> 60": "> 1"}
"""What stands in the rules of a test instead of minutes."""


@cache
def programs() -> Path:
    """The folder of prometheus and promtool: the machine's, or unpacked from Debian's package."""
    command = [str(ROOT / "scripts" / "unpack-prometheus.sh"), str(ROOT / ".coditect" / "prometheus")]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([programs() / "promtool", *words], cwd=FOLDER, capture_output=True, text=True, check=False)


def short_rules() -> str:
    """The alerts, with seconds for minutes."""
    text = (FOLDER / "alerts.yaml").read_text(encoding="utf-8")
    for before, after in SHORTER.items():
        assert before in text, before
        text = text.replace(before, after)
    return text


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus, by its API."""

    url: str
    targets: Path

    def scrape(self, targets: Mapping[str, int]) -> None:
        """Scrape these from the next second on: the health ports of processes, by their names."""
        groups = [{"targets": [f"127.0.0.1:{port}"], "labels": {"process": name}} for name, port in targets.items()]
        whole = self.targets.with_suffix(".new")
        whole.write_text(json.dumps(groups))
        whole.rename(self.targets)

    async def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"

        def get() -> Any:
            with urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]

        return await asyncio.to_thread(get)

    async def query(self, expression: str) -> list[float]:
        """The values of a query now, without those that are no number."""
        result = (await self.ask("query", query=expression))["result"]
        return [value for one in result if not math.isnan(value := float(one["value"][1]))]

    async def firing(self) -> set[str]:
        alerts = (await self.ask("alerts"))["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def up(self) -> set[str]:
        active = (await self.ask("targets"))["activeTargets"]
        return {target["labels"]["process"] for target in active if target["health"] == "up"}


@asynccontextmanager
async def running_prometheus(folder: Path, rules: str) -> AsyncIterator[Prometheus]:
    """Prometheus with these rules, a scrape and an evaluation each second; it ends with the block."""
    folder.mkdir()
    (folder / "rules.yaml").write_text(rules)
    (folder / "prometheus.yaml").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": ["rules.yaml"],
                "scrape_configs": [
                    {"job_name": "coditect", "file_sd_configs": [{"files": ["targets.json"], "refresh_interval": "1s"}]}
                ],
            }
        )
    )
    (port,) = free_ports(1)
    command = [
        str(programs() / "prometheus"),
        "--config.file=prometheus.yaml",
        f"--web.listen-address=127.0.0.1:{port}",
        "--storage.tsdb.path=data",
        "--storage.tsdb.retention.time=1h",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        one = Prometheus(f"http://127.0.0.1:{port}", folder / "targets.json")
        await eventually(lambda: _is_ready(one, process), seconds=60)
        yield one
    finally:
        process.kill()
        process.wait()


async def _is_ready(one: Prometheus, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "Prometheus ended"
    try:
        await one.ask("status/buildinfo")
    except OSError:
        return False
    return True
