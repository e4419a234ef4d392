"""What the manifests of `k8s/` promise that no API server checks; `make k8s-test` applies them to one."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
from collections.abc import Callable, Iterable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from coditect import Agent, __version__
from coditect.agent.declaration import Capability
from coditect.agent.runtime import RETURN_SECONDS
from coditect.broker.topology import Topology, base_topology, capability_queues
from coditect.cli.local import up
from coditect.local.private import KNOBS
from coditect.operations.topology import export_manifests
from coditect.settings.settings import Settings
from coditect.telemetry.metrics import QUEUE_OLDEST
from tests.docs.settings_table import settings_by_variable
from tests.k8s import conftest
from tests.servers import ROOT

K8S = ROOT / "k8s"
AGENTS = sorted((K8S / "agents").glob("*/agent.py"))
TOKENS = {"create-secrets"}
"""The only pods that ask the API server anything."""


def documents() -> Iterator[tuple[str, Any]]:
    for file in sorted(K8S.rglob("*.yaml")):
        for document in yaml.load_all(file.read_text(), yaml.CSafeLoader):
            yield str(file.relative_to(K8S)), document


DOCUMENTS = list(documents())
PODS = {
    f"{file} {document['metadata']['name']}": document
    for file, document in DOCUMENTS
    if document.get("kind") == "Job"
    or (document.get("kind") in ("Deployment", "StatefulSet") and "selector" in document["spec"])
}
"""The workloads, without the patches of workloads."""
_VALUE = re.compile(r"(CODITECT_[A-Z_]+)(?:=|: |\n +value: )([^\s{},$]+)(?=[\s,}]|$)")
"""A setting and its value, as literals of kustomize, variables of compose and of containers write them."""
Fleet = tuple[list[tuple[dict[str, Any], dict[str, str]]], list[Path]]


def declared(files: Iterable[Path]) -> list[Capability]:
    agents = [one for file in files for one in runpy.run_path(str(file)).values() if isinstance(one, Agent)]
    return [capability for agent in agents for capability in agent.capabilities]


def capabilities() -> list[str]:
    return sorted(capability.name for capability in declared(AGENTS))


def test_topology_is_that_of_the_code() -> None:
    whole: Topology = base_topology()
    for name in capabilities():
        whole = whole + capability_queues(name)
    written = json.loads((K8S / "components" / "rabbitmq" / "topology.json").read_text())

    made = export_manifests(whole, cluster="rabbitmq")

    assert by_name(written) == by_name(made), "write it anew: make topology"


def test_foundationdb_is_set_as_the_private_one_that_is_measured() -> None:
    (cluster,) = (one for file, one in DOCUMENTS if file == "components/foundationdb/cluster.yaml")

    assert cluster["spec"]["processes"]["general"]["customParameters"] == list(KNOBS)


def test_production_has_dispatchers_on_different_nodes_and_three_nodes_of_rabbitmq() -> None:
    (dispatcher,) = (one["spec"] for file, one in DOCUMENTS if file == "overlays/production/dispatcher.yaml")
    (rabbitmq,) = (one["spec"] for _, one in DOCUMENTS if one.get("kind") == "RabbitmqCluster")
    (spread,) = dispatcher["template"]["spec"]["topologySpreadConstraints"]

    assert dispatcher["replicas"] >= 2
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    assert spread["whenUnsatisfiable"] == "DoNotSchedule"
    assert rabbitmq["replicas"] == 3


def by_name(manifests: Any) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in manifests["items"]}


def test_every_agent_is_scaled_by_depth_and_oldest_age_of_the_queues_of_its_capabilities() -> None:
    scaled = [document["spec"]["triggers"] for _, document in DOCUMENTS if document.get("kind") == "ScaledObject"]
    triggers = [(trigger["type"], trigger["metadata"]) for one in scaled for trigger in one]
    depths = [of["queueName"] for kind, of in triggers if kind == "rabbitmq" and of["mode"] == "QueueLength"]
    ages = [of for kind, of in triggers if kind == "prometheus"]

    assert "capability" in QUEUE_OLDEST.labels
    for name in capabilities():
        queues = [f"tasks.{name}.p{level}" for level in range(3)]
        assert any(all(re.search(pattern, queue) for queue in queues) for pattern in depths), name
        query = f'max({QUEUE_OLDEST.name}{{namespace="coditect", capability="{name}"}})'
        assert query in [of["query"] for of in ages], name
    assert [of.keys() for of in ages] == [{"serverAddress", "query", "threshold"}] * len(ages), "KEDA takes any other"


def test_no_secret_is_written_down() -> None:
    assert PODS
    for file, document in DOCUMENTS:
        assert document.get("kind") != "Secret", file
        assert "secretGenerator" not in document, file
        assert not re.search(r"://[^/$\s]*:[^@$\s]+@", json.dumps(document)), file


@pytest.mark.parametrize("name", PODS)
def test_pod_is_restricted_and_says_what_it_needs(name: str) -> None:
    pod = PODS[name]["spec"]["template"]["spec"]

    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is (PODS[name]["metadata"]["name"] in TOKENS)
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("name", [name for name, one in PODS.items() if one["kind"] != "Job"])
def test_pod_that_serves_is_probed(name: str) -> None:
    (container,) = PODS[name]["spec"]["template"]["spec"]["containers"]

    assert {"livenessProbe", "readinessProbe"} <= container.keys()
    assert "startupProbe" in container or container["name"] == "redis"
    if container["name"] == "agent":  # it answers from its start: only readiness tells one that hangs in it
        assert container["startupProbe"]["httpGet"]["path"] == "/readyz"


def settings_of(pod: dict[str, Any]) -> dict[str, str]:
    (container,) = pod["containers"]
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def in_overlays() -> Fleet:
    """The pods that run tasks, their settings, and the files of their agents."""
    base = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())["configMapGenerator"][0]["literals"]
    places = ("agent/agent.yaml", "components/api/api.yaml")
    pods = [one["spec"]["template"]["spec"] for name, one in PODS.items() if name.startswith(places)]
    assert len(pods) == len(places)
    return [(pod, dict(one.split("=", 1) for one in base) | settings_of(pod)) for pod in pods], AGENTS


def in_starter() -> Fleet:
    starter = Path(up.__file__).parent / "starter"
    pod = yaml.safe_load((starter / "k8s" / "greeter.yaml").read_text())["spec"]["template"]["spec"]
    return [(pod, settings_of(pod))], [starter / "greeter.py"]


@pytest.mark.parametrize("fleet", [in_overlays, in_starter])
def test_pod_has_longer_to_end_than_a_drain_takes_and_a_drain_than_a_task(fleet: Callable[[], Fleet]) -> None:
    pods, files = fleet()
    longest = max(capability.spec.timeout_seconds for capability in declared(files))

    for pod, settings in pods:
        drain = float(settings.get("CODITECT_DRAIN_SECONDS", Settings().drain_seconds))
        assert pod["terminationGracePeriodSeconds"] > drain + RETURN_SECONDS
        assert drain >= longest


def test_every_overlay_runs_the_version_of_this_project() -> None:
    (release,) = (document for file, document in DOCUMENTS if file == "components/release/kustomization.yaml")

    written = {release["images"][0]["newTag"], release["labels"][1]["pairs"]["app.kubernetes.io/version"]}

    assert written == {__version__}


def test_every_setting_that_a_manifest_names_exists_and_has_a_valid_value() -> None:
    known = settings_by_variable()

    starter = Path(up.__file__).parent / "starter"
    for file in (*K8S.rglob("*.yaml"), *starter.rglob("*.yaml"), *starter.rglob("*.env"), *(ROOT / "deploy").glob("*")):
        if not file.is_file():
            continue
        text = file.read_text()
        assert set(re.findall(r"CODITECT_[A-Z_]+", text)) <= known.keys(), file
        for variable, value in _VALUE.findall(text):
            known[variable].kind.parse(variable, value.strip("\"'"))


@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_scaled_object_asks_the_broker_of_the_namespace_of_its_overlay(overlay: str) -> None:
    """The components name that of production; another overlay patches it."""
    kustomization = (K8S / "overlays" / overlay / "kustomization.yaml").read_text()
    components = "".join(file.read_text() for file in (K8S / "components" / "keda").glob("*.yaml"))

    asked = re.compile(r"https://rabbitmq\.(\S+)\.svc")

    assert set(asked.findall(kustomization) or asked.findall(components)) == {
        yaml.safe_load(kustomization)["namespace"]
    }


def test_alerts_and_dashboards_are_those_of_deploy() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "observability_manifests.py"))

    for file, manifests in made["documents"]().items():
        assert file.read_text(encoding="utf-8") == made["text"](manifests), "python scripts/observability_manifests.py"


def test_images_of_the_component_are_those_of_compose() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]
    stack = [one for file, one in DOCUMENTS if file == "components/observability/stack.yaml"]
    images = {
        one["metadata"]["name"]: container["image"]
        for one in stack
        if one["kind"] == "Deployment"
        for container in one["spec"]["template"]["spec"]["containers"]
    }

    assert images == {name: one["image"] for name, one in services.items() if one.get("profiles") == ["observability"]}


def test_every_file_of_a_component_is_a_resource_of_it() -> None:
    for file in (K8S / "components").glob("*/kustomization.yaml"):
        named = set(yaml.safe_load(file.read_text()).get("resources", ()))
        there = {one.name for one in file.parent.glob("*.yaml")} - {file.name}

        assert {name for name in named if name.endswith(".yaml")} <= there, file
    assert {"alerts.yaml", "fleet.yaml"} <= {one.name for one in (K8S / "components" / "monitoring").iterdir()}


def test_kubernetes_is_built_once_for_every_clone(tmp_path: Path) -> None:
    words = ["make", "--dry-run", "k8s-test"]
    told = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    ).stdout

    assert f"scripts/kubernetes-servers.sh {tmp_path}/coditect/kubernetes" in told


def test_run_and_doc_say_what_a_cluster_has_and_the_run_had_not(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    monkeypatch.setattr(conftest, "PROGRAMS", "somewhere")
    told = StringIO()

    conftest.pytest_terminal_summary(pytest.TerminalReporter(pytestconfig, told))

    doc = " ".join((ROOT / "docs" / "kubernetes.md").read_text().partition("what it does not prove:")[2].split())
    for what in conftest.ABSENT:
        assert f"\n{what}: " in told.getvalue()
        assert what in doc
