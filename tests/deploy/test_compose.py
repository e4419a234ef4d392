"""`deploy/compose.yaml`: valid, without a secret, and every command of ours in it started as it is written there.

No container is started. The servers are the private ones of the test, so their addresses, ports and files take the
place of the containers'; a ledger in SQLite takes that of FoundationDB.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
import yaml

from coditect import Client, Workflow
from coditect.local import PrivateServers
from coditect.local.servers import free_ports
from coditect.settings.settings import Settings
from coditect.testing.servers import Images
from tests.servers import ROOT
from tests.support import eventually

FILE = ROOT / "deploy" / "compose.yaml"
IMAGE = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
SCRIPTS = Path(sys.executable).parent
PASSWORDS = {"RABBITMQ_PASSWORD": "of-the-broker", "REDIS_PASSWORD": "of-redis"}
_VARIABLE = re.compile(r"\$\{([A-Z_]+):\?[^}]*\}")


def composed(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file as Compose reads it: with its variables, each of which must have a value."""
    text = _VARIABLE.sub(lambda found: variables[found[1]], FILE.read_text(encoding="utf-8"))
    assert "${" not in text
    return dict(yaml.safe_load(text))


COMPOSED = composed(PASSWORDS)
SERVICES: dict[str, dict[str, Any]] = COMPOSED["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].partition(":")[0] == "coditect"}


def checked(file: Path) -> subprocess.CompletedProcess[str]:
    words = [str(SCRIPTS / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_file_fits_the_published_schema() -> None:
    done = checked(FILE)

    assert done.returncode == 0, done.stdout


def test_file_with_an_unknown_key_does_not(tmp_path: Path) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(FILE.read_text(encoding="utf-8").replace("read_only: true", "read_olny: true"))

    assert "read_olny" in checked(broken).stdout


def test_every_secret_comes_from_the_environment() -> None:
    other = composed({name: f"other-{name}" for name in PASSWORDS})

    assert set(_VARIABLE.findall(FILE.read_text(encoding="utf-8"))) == set(PASSWORDS)
    assert all(password not in json.dumps(other) for password in PASSWORDS.values())
    assert not [name for name in SERVICES if ":@" in json.dumps(SERVICES[name])]


def test_what_a_service_names_is_there() -> None:
    for service in SERVICES.values():
        named = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        configured = {config["source"] for config in service.get("configs", ())}
        awaited = service.get("depends_on", {})

        mounted = {name for name in named if name.startswith("./")}
        assert named - mounted <= set(COMPOSED["volumes"])
        assert all((FILE.parent / name).exists() for name in mounted)
        assert configured <= set(COMPOSED["configs"])
        assert all(one == {"condition": "service_healthy"} for one in awaited.values())
        assert all("healthcheck" in SERVICES[name] for name in awaited)
        assert set(service["deploy"]["resources"]["limits"]) >= {"cpus", "memory"}


@pytest.mark.parametrize("name", OURS)
def test_program_is_confined_and_waits_for_its_servers(name: str) -> None:
    service = OURS[name]
    stated = service["environment"]
    ledger = {"foundationdb"} if stated.get("CODITECT_STORE_URL", "").startswith("fdb:") else set()
    drain = float(stated.get("CODITECT_DRAIN_SECONDS", Settings().drain_seconds))

    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    assert set(service["depends_on"]) == {"rabbitmq", "redis"} | ledger
    assert float(service["stop_grace_period"].removesuffix("s")) > drain
    assert service["build"]["target"] in re.findall(r"^FROM \S+ AS (\S+)$", IMAGE, re.MULTILINE)


def test_servers_are_of_the_versions_that_tests_take_and_keep_their_data() -> None:
    taken = asdict(Images())
    kept = {name: SERVICES[name]["volumes"] for name in (*taken, "dispatcher-on-sqlite")}

    assert {name: SERVICES[name]["image"] for name in taken} == taken
    assert taken["rabbitmq"] == "rabbitmq:4"
    assert kept == {
        "rabbitmq": ["rabbitmq:/var/lib/rabbitmq"],
        "redis": ["redis:/data"],
        "foundationdb": ["foundationdb:/var/fdb/data", "cluster:/var/fdb/cluster"],
        "dispatcher-on-sqlite": ["ledger:/var/lib/coditect"],
    }


def test_the_fleet_is_that_of_this_repository_without_the_agent_of_load_tests() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    replicas = {
        service["command"][2]: service["deploy"]["replicas"]
        for service in OURS.values()
        if service["command"][:2] == ["agent", "run"]
    }

    assert replicas | {"agents/load.py": 2} == project["tool"]["coditect"]["fleet"]
    assert OURS["dispatcher"]["deploy"]["replicas"] == 2


def test_what_watches_is_started_by_its_profile_alone_in_pinned_versions() -> None:
    seen = {name: one for name, one in SERVICES.items() if one.get("profiles") == ["observability"]}

    assert set(seen) == {"prometheus", "jaeger", "loki", "collector", "grafana"}
    for service in seen.values():
        assert re.fullmatch(r"[a-z./-]+:v?\d+\.\d+\.\d+", service["image"])
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])


def test_prometheus_scrapes_every_program_at_its_health_port() -> None:
    config = yaml.safe_load((FILE.parent / "observability" / "prometheus.yaml").read_text(encoding="utf-8"))
    (found,) = (job["dns_sd_configs"] for job in config["scrape_configs"])
    ports = {name: str(one["port"]) for one in found for name in one["names"]}

    assert ports == {name: service["environment"]["CODITECT_HEALTH_PORT"] for name, service in OURS.items()}


def test_the_api_wants_keys_and_is_published_to_this_machine_alone() -> None:
    api = OURS["api"]

    assert api["environment"]["CODITECT_API_KEYS"].startswith("/var/lib/coditect/")
    assert api["ports"] == ["127.0.0.1:8009:8009"]


def test_grafana_asks_the_services_that_there_are() -> None:
    provisioning = FILE.parent / "observability" / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "coditect.yaml").read_text(encoding="utf-8"))

    assert {urlsplit(source["url"]).hostname for source in sources["datasources"]} <= set(SERVICES)


class Here:
    """The services as processes of this machine, on private servers."""

    def __init__(self, servers: PrivateServers, folder: Path) -> None:
        self._servers = servers
        self._folder = folder
        password = urlsplit(servers.amqp_url).password or ""
        self.services = composed(dict.fromkeys(PASSWORDS, password))["services"]

    def environment(self, name: str) -> dict[str, str]:
        """The variables that the service states, with what is here instead of what is in a container."""
        port = str(free_ports(1)[0])
        here = {
            "rabbitmq:5672": urlsplit(self._servers.amqp_url).netloc.rpartition("@")[2],
            "redis:6379": urlsplit(self._servers.redis_url).netloc.rpartition("@")[2],
            "fdb:/var/fdb/cluster/fdb.cluster": f"sqlite:{self._folder / 'cluster.db'}",
            "/var/lib/coditect": str(self._folder),
            "9100": port,
            "8009": port,
            "0.0.0.0": "127.0.0.1",
        }
        stated: dict[str, str] = self.services[name]["environment"]
        for there, instead in here.items():
            stated = {variable: value.replace(there, instead) for variable, value in stated.items()}
        return {
            "CODITECT_API_PORT": port,
            "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self._folder),
            **stated,
        }

    @contextmanager
    def running(self, name: str) -> Iterator[dict[str, str]]:
        """The image's entry point with the service's command, until the block ends; yields its variables."""
        entry = json.loads(re.findall(r"^ENTRYPOINT (.+)$", IMAGE, re.MULTILINE)[-1])
        variables = self.environment(name)
        with (self._folder / f"{name}.log").open("w") as log:
            words = [str(SCRIPTS / entry[0]), *entry[1:], *self.services[name]["command"]]
            process = subprocess.Popen(words, cwd=ROOT, env=variables, stdout=log, stderr=log)
            try:
                yield variables
                process.send_signal(signal.SIGTERM)
                assert process.wait(45) == 0, (self._folder / f"{name}.log").read_text()
            finally:
                process.kill()
                process.wait()

    async def healthy(self, name: str, variables: Mapping[str, str]) -> bool:
        """What the service's own health check says, in the program's environment."""
        kind, program, *words = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        asked = await asyncio.create_subprocess_exec(
            str(SCRIPTS / program), *words, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return await asked.wait() == 0


@pytest.mark.servers
@pytest.mark.proof
@pytest.mark.timeout(240)
@pytest.mark.parametrize("profile", ["foundationdb", "sqlite"])
async def test_every_program_is_started_and_asked_as_written(
    own_servers: PrivateServers, tmp_path: Path, profile: str
) -> None:
    here = Here(own_servers, tmp_path)
    chosen = [name for name, service in OURS.items() if profile in service.get("profiles", [profile])]
    flow = Workflow("overview")
    flow.task("text.summarize", {"text": "Agents find each other. They hand work over, and finish it.", "sentences": 1})

    with ExitStack() as stack:
        variables = {name: stack.enter_context(here.running(name)) for name in chosen}
        for name in chosen:
            await eventually(partial(here.healthy, name, variables[name]), seconds=90)
        with pytest.raises(HTTPError, match="401"):
            await asyncio.to_thread(urlopen, f"http://127.0.0.1:{variables['api']['CODITECT_API_PORT']}/v1/agents")
        async with Client.from_env(variables["summarizer"]) as client:
            run = await client.start(flow)
            summary = await run.result(timeout="60s")

    assert summary["sentences"]
