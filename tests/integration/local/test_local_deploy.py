"""What `coditect init` writes for Docker and Kubernetes: its commands, started exactly as written, do a workflow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from coditect.local import PrivateServers
from coditect.local.servers import free_ports
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.proof]
LEDGER = "/var/lib/coditect"
"""Where both mount the ledger's volume; here it is a folder of the test's own."""
WORKFLOW = ["coditect", "workflow", "start", "greetings.yaml", "--input", '{"names": ["Ada", "Grace"]}']
Asks = Callable[[dict[str, str]], bool]


@dataclass(frozen=True, slots=True)
class Program:
    """A container: what follows the entry point of its image, its environment, and its health check."""

    words: list[str]
    environment: dict[str, str]
    healthy: Asks


def compose_of(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "compose.yaml").read_text()))


def objects_of(folder: Path) -> list[dict[str, Any]]:
    names = yaml.safe_load((folder / "k8s" / "kustomization.yaml").read_text())["resources"]
    return [one for name in names for one in yaml.safe_load_all((folder / "k8s" / name).read_text())]


def pods_of(folder: Path) -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in objects_of(folder) if one["kind"] == "Deployment"]


def by_command(words: list[str]) -> Asks:
    return lambda environment: subprocess.run(words, env=environment, capture_output=True, check=False).returncode == 0


def by_http(paths: list[str]) -> Asks:
    def asks(environment: dict[str, str]) -> bool:
        try:
            urls = [f"http://127.0.0.1:{environment['CODITECT_HEALTH_PORT']}{path}" for path in paths]
            return all(urlopen(url, timeout=5).status == 200 for url in urls)
        except OSError:  # it does not answer, or not in time
            return False

    return asks


def in_compose(folder: Path) -> list[Program]:
    ours = [one for one in compose_of(folder)["services"].values() if one["image"] in ("coditect", folder.name)]
    return [Program(one["command"], one["environment"], by_command(one["healthcheck"]["test"][1:])) for one in ours]


def in_kubernetes(folder: Path) -> list[Program]:
    secret = dict(line.split("=", 1) for line in (folder / "k8s" / "servers.env").read_text().split())
    programs = []
    for pod in pods_of(folder):
        [container] = pod["containers"]
        own = {pair["name"]: pair["value"] for pair in container["env"]}
        paths = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
        programs.append(Program(container["args"], secret | own, by_http(paths)))
    return programs


@pytest.fixture
def project(tmp_path: Path) -> Path:
    subprocess.run([sys.executable, "-m", "coditect", "init", "my-fleet"], cwd=tmp_path, check=True)
    return tmp_path / "my-fleet"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def here(program: Program, servers: PrivateServers, folder: Path) -> dict[str, str]:
    """The environment that the files give a program, with the addresses and the folder of this test."""
    moved = {"CODITECT_AMQP_URL": servers.amqp_url, "CODITECT_REDIS_URL": servers.redis_url}
    moved["CODITECT_HEALTH_PORT"] = str(free_ports(1)[0])
    assert set(moved) <= set(program.environment)
    own = {name: value.replace(LEDGER, str(folder)) for name, value in program.environment.items()}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | own | moved | {"CODITECT_HEALTH_HOST": "127.0.0.1", "PATH": path}


@pytest.mark.parametrize("programs_of", [in_compose, in_kubernetes])
async def test_programs_as_they_are_written_get_healthy_do_a_workflow_and_end_in_order(
    programs_of: Callable[[Path], list[Program]],
    project: Path,
    own_servers: PrivateServers,
    tmp_path: Path,
    stack: ExitStack,
) -> None:
    processes = []
    for program in programs_of(project):
        environment = here(program, own_servers, tmp_path)
        process = subprocess.Popen(["coditect", *program.words], cwd=project, env=environment)
        stack.callback(process.kill)
        processes.append(process)
        await eventually(partial(program.healthy, environment), seconds=60)
    assert len(processes) == 2

    done = subprocess.run(WORKFLOW, cwd=project, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "Hello, Grace!" in done.stdout
    assert (tmp_path / "ledger.db").is_file()
    for process in processes:
        process.terminate()
    assert [process.wait(100) for process in processes] == [0, 0]


def test_compose_waits_for_healthy_servers_and_declares_what_it_mounts(project: Path) -> None:
    compose = compose_of(project)
    services = compose["services"]

    for service in services.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        for name, wanted in service.get("depends_on", {}).items():
            assert (name in services, wanted["condition"]) == (True, "service_healthy")
    mounted = {one.partition(":")[0] for service in services.values() for one in service.get("volumes", [])}
    assert mounted == set(compose["volumes"])
    assert all(services[name]["read_only"] for name in ("dispatcher", "greeter"))
    copied = (project / "Dockerfile").read_text()
    assert copied.startswith("FROM coditect\n")
    assert f"COPY {services['greeter']['command'][-1]} " in copied


def test_password_is_drawn_for_each_project_and_not_kept_in_git(project: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "coditect", "init", "other"], cwd=tmp_path, check=True)

    first, second = ((tmp_path / name / ".env").read_text() for name in ("my-fleet", "other"))

    assert first != second
    assert len(first.strip()) == len("RABBITMQ_PASSWORD=") + 32
    assert {".env", "servers.env"} <= set((project / ".gitignore").read_text().split())
    assert f"{first.strip().partition('=')[2]}" not in (project / "compose.yaml").read_text()


def test_pods_satisfy_the_restricted_standard_and_name_what_there_is(project: Path) -> None:
    kustomization = yaml.safe_load((project / "k8s" / "kustomization.yaml").read_text())
    claims = {one["metadata"]["name"] for one in objects_of(project) if one["kind"] == "PersistentVolumeClaim"}

    for pod in pods_of(project):
        [container] = pod["containers"]
        assert (pod["securityContext"]["runAsNonRoot"], pod["securityContext"]["runAsUser"]) == (True, 10001)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert not pod["automountServiceAccountToken"]
        assert container["image"] in {one["name"] for one in kustomization["images"]}
        [source] = container["envFrom"]
        assert source["secretRef"]["name"] in {one["name"] for one in kustomization["secretGenerator"]}
        used = {one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one}
        assert used <= claims
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        ports = {one["name"]: str(one["containerPort"]) for one in container["ports"]}
        assert ports["health"] in [one["value"] for one in container["env"] if one["name"] == "CODITECT_HEALTH_PORT"]
        assert all(
            container[f"{one}Probe"]["httpGet"]["port"] == "health" for one in ("startup", "liveness", "readiness")
        )
