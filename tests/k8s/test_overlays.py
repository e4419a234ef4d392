"""The overlays on a real API server: accepted, ready, updated, scaled and protected; and their pods do a workflow."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from httpx2 import get
from pika import BlockingConnection, URLParameters
from pika.exceptions import ChannelClosedByBroker
from redis import Redis
from redis.exceptions import NoPermissionError
from yarl import URL

from coditect.api.access import KeyFile, Role
from coditect.local.private import PrivateServers
from coditect.local.servers import free_ports
from coditect.testing.servers import private
from tests.k8s.cluster import Cluster, Refused, until
from tests.k8s.metrics import METRIC, external_metric
from tests.k8s.pods import Kubelet, LocalPod
from tests.k8s.secured import behind_tls, certificate, give
from tests.servers import ROOT

pytestmark = pytest.mark.timeout(600)
K8S = ROOT / "k8s"
NAMESPACES = {
    "dev": "coditect-dev",
    "fleet": "coditect-fleet",
    "staging": "coditect-staging",
    "production": "coditect",
}
FLOW = {
    "name": "greetings",
    "nodes": {
        "greet": {"task": "hello.greet", "input": "Ada"},
        "count": {"task": "text.count", "input": {"$from": "results.greet"}, "after": ["greet"]},
    },
}


@pytest.fixture(scope="module")
def fleet(cluster: Cluster) -> Cluster:
    """The overlays, applied."""
    for overlay in NAMESPACES:
        cluster.apply(K8S / "overlays" / overlay)
    return cluster


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateServers]:
    with private(tmp_path_factory.mktemp("servers"), os.environ, management=True) as running:
        yield running


@pytest.mark.parametrize("overlay", NAMESPACES)
def test_every_deployment_of_an_overlay_gets_ready(fleet: Cluster, overlay: str) -> None:
    fleet.ready(NAMESPACES[overlay])

    deployments = {one["metadata"]["name"] for one in fleet.get("deployments", "-n", NAMESPACES[overlay])}
    agents = {"greeter", "counter"} if overlay != "fleet" else {"reviewer", "documenter", "summarizer", "publisher"}
    assert {"dispatcher", "api", "redis", *(f"{name}-agent" for name in agents)} <= deployments


@pytest.mark.parametrize(("component", "kind"), {"gateway": "httproute", "ingress": "ingress"}.items())
def test_example_of_a_way_in_is_taken(cluster: Cluster, component: str, kind: str, tmp_path: Path) -> None:
    copy = shutil.copytree(K8S, tmp_path / "k8s")
    kustomization = copy / "overlays" / "dev" / "kustomization.yaml"
    kustomization.write_text(
        kustomization.read_text().replace("coditect-dev", component) + f"  - ../../components/{component}\n"
    )

    cluster.apply(kustomization.parent)

    assert cluster.get(kind, "api", "-n", component)


def test_pod_that_is_not_restricted_is_refused(fleet: Cluster) -> None:
    pod: Any = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root", "namespace": "coditect"}}
    pod["spec"] = {"containers": [{"name": "root", "image": "coditect"}]}

    with pytest.raises(Refused, match="violates PodSecurity"):
        fleet.create(pod)


def test_dispatchers_of_production_are_on_different_nodes_and_rabbitmq_has_three(fleet: Cluster) -> None:
    words = ("pods", "-n", "coditect", "-l", "app.kubernetes.io/component=dispatcher")
    nodes = [node["metadata"]["name"] for node in fleet.get("nodes")]
    closed = nodes[2:]

    def placed() -> list[str]:
        return [pod["spec"]["nodeName"] for pod in fleet.get(*words) if "nodeName" in pod["spec"]]

    def reasons() -> set[str]:
        conditions = [one for pod in fleet.get(*words) for one in pod["status"].get("conditions", ())]
        return {one.get("message", "") for one in conditions if one["type"] == "PodScheduled"} - {""}

    fleet.ready("coditect")
    fleet.kubectl("cordon", *closed)  # two nodes are left, which three dispatchers must not share
    try:
        fleet.kubectl("delete", *words)
        until(lambda: len(placed()) == 2 and reasons(), "two dispatchers have a node, and the third has none")
        (reason,) = reasons()
        assert "topology spread constraints" in reason
    finally:
        fleet.kubectl("uncordon", *closed)
    fleet.ready("coditect")

    assert len(placed()) == len(set(placed())) == 3
    assert fleet.get("rabbitmqcluster", "rabbitmq", "-n", "coditect")["spec"]["replicas"] == 3


def test_rolling_update_replaces_every_pod(fleet: Cluster) -> None:
    def images() -> set[str]:
        pods = fleet.get("pods", "-n", "coditect", "-l", "app.kubernetes.io/component=dispatcher")
        return {pod["spec"]["containers"][0]["image"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}

    fleet.ready("coditect")
    fleet.kubectl("set", "image", "deployment/dispatcher", "dispatcher=coditect:0.2.0", "-n", "coditect")
    fleet.ready("coditect")

    until(lambda: images() == {"coditect:0.2.0"}, "only pods of the new version are left")


def test_disruption_budget_refuses_a_second_eviction(fleet: Cluster) -> None:
    fleet.ready("coditect")
    words = ("pods", "-n", "coditect", "-l", "app.kubernetes.io/component=dispatcher")
    until(lambda: len(fleet.get(*words)) == 3, "three dispatchers")
    budget = ("pdb", "dispatcher", "-n", "coditect")
    until(lambda: fleet.get(*budget)["status"].get("disruptionsAllowed") == 1, "one may be disrupted")
    first, second, _ = (pod["metadata"]["name"] for pod in fleet.get(*words))
    nodes = [node["metadata"]["name"] for node in fleet.get("nodes")]

    fleet.kubectl("cordon", *nodes)  # as for a drain: the evicted pod's successor finds no node
    try:
        _evict(fleet, first)

        with pytest.raises(Refused, match="disruption budget"):
            _evict(fleet, second)
    finally:
        fleet.kubectl("uncordon", *nodes)


def _evict(cluster: Cluster, pod: str) -> None:
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": "coditect"}}
    cluster.kubectl("create", "--raw", f"/api/v1/namespaces/coditect/pods/{pod}/eviction", "-f", "-", given=eviction)


@pytest.mark.parametrize(("overlay", "age"), {"staging": [], "production": ["prometheus"]}.items())
def test_agents_are_scaled_by_depth_and_where_prometheus_is_by_oldest_age(
    fleet: Cluster, overlay: str, age: list[str]
) -> None:
    scaled = [one["spec"] for one in fleet.get("scaledobjects", "-n", NAMESPACES[overlay])]

    assert {one["scaleTargetRef"]["name"] for one in scaled} == {"greeter-agent", "counter-agent"}
    for one in scaled:
        triggers = [trigger["metadata"].get("mode", trigger["type"]) for trigger in one["triggers"]]
        assert triggers == ["QueueLength", "ExpectedQueueConsumptionTime", *age]


def test_waiting_tasks_bring_more_pods(fleet: Cluster, tmp_path: Path) -> None:
    """KEDA makes such a HorizontalPodAutoscaler of a ScaledObject, and answers for its metric."""
    scaled = fleet.get("scaledobject", "greeter", "-n", "coditect")["spec"]
    wanted = int(scaled["triggers"][0]["metadata"]["value"])
    target = {"type": "AverageValue", "averageValue": str(wanted)}
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "keda-hpa-greeter", "namespace": "coditect"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", **scaled["scaleTargetRef"]},
            "minReplicas": scaled["minReplicaCount"],
            "maxReplicas": scaled["maxReplicaCount"],
            "metrics": [{"type": "External", "external": {"metric": {"name": METRIC}, "target": target}}],
        },
    }

    with external_metric(fleet, tmp_path, value=5 * wanted):
        fleet.create(autoscaler)

        name = ("deployment", "greeter-agent", "-n", "coditect")
        until(lambda: fleet.get(*name)["status"].get("readyReplicas") == 5, "five pods for five times the value")
        fleet.kubectl("delete", "hpa", "keda-hpa-greeter", "-n", "coditect")


def play(
    cluster: Cluster,
    overlay: Path,
    namespace: str,
    servers: PrivateServers,
    folder: Path,
    look: Callable[[list[LocalPod]], None] = lambda pods: None,
) -> Any:
    """Apply an overlay like `dev`, run its Job and then its pods as processes, and return what a workflow gave.

    `look` sees the pods at work after the workflow; then they are asked to end, and must do so in order.
    """
    cluster.apply(overlay)
    cluster.ready(namespace)
    amqp, redis, management = (urlsplit(one) for one in (servers.amqp_url, servers.redis_url, servers.management_url))
    names = {
        "rabbitmq:5672": f"127.0.0.1:{amqp.port}",
        "rabbitmq:15672": f"127.0.0.1:{management.port}",
        "redis:6379": f"127.0.0.1:{redis.port}",
    }
    kubelet = Kubelet(cluster, folder, names)
    (job,) = kubelet.pods(namespace, "secrets")
    with kubelet.running(job, "127.0.1.1") as made:
        assert made.started[0].wait(60) == 0, (made.folder / "log").read_text()
    _put(cluster, namespace, "rabbitmq-default-user", {"username": amqp.username, "password": amqp.password})
    _put(cluster, namespace, "redis", {"password": redis.password or ""})
    return _work(kubelet, namespace, look)


def _work(kubelet: Kubelet, namespace: str, look: Callable[[list[LocalPod]], None]) -> Any:
    """Run dispatchers, agents and the API, have them do a workflow, and return what it gave."""
    pods: list[LocalPod] = []
    with ExitStack() as stack:
        for component, number in (("dispatcher", 2), ("agent", 3), ("api", 4)):
            for place, pod in enumerate(kubelet.pods(namespace, component)):
                local = stack.enter_context(kubelet.running(pod, f"127.0.{number}.{place + 1}"))
                local.ready()
                pods.append(local)
        apis = [pod for pod in pods if pod.container["name"] == "api"]
        assert len(apis) == 2
        (apis[0].folder / "tmp" / "flow.json").write_text(json.dumps(FLOW))
        given = apis[0].run("workflow", "start", "/tmp/flow.json", "--wait", "60s", "--output", "json")
        for api in apis:
            _ask(kubelet.cluster, api)
        look(pods)
    assert [pod.exit_code for pod in pods] == [[0]] * len(pods)
    return json.loads(given)


def _environment(servers: PrivateServers) -> dict[str, str]:
    return os.environ | {"CODITECT_AMQP_URL": servers.amqp_url, "CODITECT_REDIS_URL": servers.redis_url}


def _ask(cluster: Cluster, api: LocalPod) -> None:
    """Look at the fleet by the HTTP API; raises Refused unless it wants a key and takes the one that the Job made."""
    secret = cluster.get("secret", "api-keys", "-n", api.pod["metadata"]["namespace"])["data"]["admin"]
    known = {"authorization": f"Bearer {base64.b64decode(secret).decode()}"}
    statuses = [get(api.url("http", "/v1/agents"), headers=given).status_code for given in ({}, known)]
    if statuses != [401, 200]:
        raise Refused(f"the API answers {statuses} without a key and with it")


def _put(cluster: Cluster, namespace: str, name: str, values: dict[str, str | None]) -> None:
    """Give a Secret that is there the addresses and passwords of the servers that run."""
    cluster.kubectl("get", "secret", name, "-n", namespace)
    patch = json.dumps({"stringData": values})
    cluster.kubectl("patch", "secret", name, "-n", namespace, "--type=merge", "-p", patch)


def test_pods_of_dev_do_a_workflow_are_not_ready_without_a_broker_and_end_in_order(
    cluster: Cluster, servers: PrivateServers, tmp_path: Path
) -> None:
    def look(pods: list[LocalPod]) -> None:
        asyncio.run(servers.kill_broker())
        until(lambda: not any(pod.holds("readinessProbe") for pod in pods), "no pod without its broker is ready")
        alive = [pod.holds("livenessProbe") for pod in pods]
        asyncio.run(servers.start_broker())
        until(lambda: all(pod.holds("readinessProbe") for pod in pods), "every pod is ready again")
        assert alive == [True] * len(pods)
        for pod in pods:
            assert pod.writable("/", "/etc", "/usr", "/tmp", "/etc/coditect") == {"/tmp"}

    done = play(cluster, K8S / "overlays" / "dev", "coditect-dev", servers, tmp_path, look)

    assert done["state"] == "completed", done
    assert done["value"] == 2, done


ROLES = ("agent", "api", "dispatcher")
TOPOLOGY = ("exchanges", "queues", "bindings", "users", "permissions")


def _secured(folder: Path, port: int) -> Path:
    """Return `production` with a ledger that needs no operator, and with a free port of this machine for Redis."""
    copy = shutil.copytree(K8S, folder / "k8s")
    tls = copy / "components" / "tls" / "kustomization.yaml"
    tls.write_text(tls.read_text().replace("6380", str(port)))
    ledger = "CODITECT_STORE_URL=sqlite:/var/lib/coditect/ledger.db"
    made = {
        "namespace": "secured",
        "resources": ["../production"],
        "replicas": [{"name": "dispatcher", "count": 1}],
        "configMapGenerator": [{"name": "coditect", "behavior": "merge", "literals": [ledger]}],
    }
    overlay = copy / "overlays" / "secured"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(made))
    return overlay


def _secrets(folder: Path, passwords: Mapping[str, str]) -> Iterator[object]:
    """Yield what operators, cert-manager and people make."""
    keys = KeyFile(folder / "api-keys")
    admin = keys.create("admin", Role.ADMIN, made_at="2026-01-01T00:00:00Z")
    shown = {name: (folder / name).read_text() for name in ("ca.crt", "tls.crt", "tls.key")}
    data: dict[str, dict[str, str]] = {
        "api-keys": {"api-keys": (folder / "api-keys").read_text(), "admin": admin},
        "rabbitmq-tls": shown,
        "redis-tls": shown,
    }
    for role, password in passwords.items():
        data[f"{role}-user-credentials"] = {"username": role, "password": password}
        data[f"redis-{role}"] = {"password": password}
    for name, values in data.items():
        metadata = {"name": name, "namespace": "secured"}
        yield {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}
    metadata = {"name": "foundationdb-config", "namespace": "secured"}
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"cluster-file": ""}}


def test_pods_of_production_do_a_workflow_by_tls_each_role_as_a_user_that_may_do_no_more(
    cluster: Cluster, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    cluster.apply(_secured(tmp_path, port))
    cluster.ready("secured")
    context = certificate(tmp_path)
    passwords = {role: token_urlsafe(24) for role in (*ROLES, "keda")}
    cluster.create(*_secrets(tmp_path, passwords))

    def look(pods: list[LocalPod]) -> None:
        (api, _) = (pod for pod in pods if pod.container["name"] == "api")
        assert api.run("task", "submit", "text.count", '"one two"', "--wait", "30s") == "2\n"
        for words in ("dispatcher status", "dead list", "trigger create pushed repo.pushed /tmp/flow.json"):
            api.run(*words.split())
        logs = [(pod.folder / "log").read_text() for pod in pods]
        assert not [log for log in logs if "do not allow" in log or "refuse" in log]

    with private(tmp_path / "servers", os.environ, management=True) as servers, ExitStack() as stack:
        amqp, management = urlsplit(servers.amqp_url), urlsplit(servers.management_url)
        objects = [one for kind in TOPOLOGY for one in cluster.get(f"{kind}.rabbitmq.com", "-n", "secured")]
        give(servers.management_url, objects, passwords)
        names = {f"redis:{port}": f"127.0.0.1:{port}"}
        for at, where in ((5671, amqp), (15671, management)):
            names[f"rabbitmq:{at}"] = f"127.0.0.1:{stack.enter_context(behind_tls(where.port or 0, context))}"
        kubelet = Kubelet(cluster, tmp_path / "pods", names)
        (redis,) = kubelet.pods("secured", "redis")
        stack.enter_context(kubelet.running(redis, "127.0.5.1"))

        done = _work(kubelet, "secured", look)

        assert done["value"] == 2, done
        asked = f"http://127.0.0.1:{management.port}/api/queues/%2F?page=1&use_regex=true&name=%5Etasks"
        assert get(asked, auth=("keda", passwords["keda"])).json()["filtered_count"] == 6
        agent = URLParameters(str(URL(servers.amqp_url).with_user("agent").with_password(passwords["agent"])))
        with BlockingConnection(agent) as limited, pytest.raises(ChannelClosedByBroker, match="ACCESS_REFUSED"):
            limited.channel().basic_get("results.0")
        url = f"rediss://agent:{passwords['agent']}@127.0.0.1:{port}/0?ssl_ca_certs={tmp_path / 'ca.crt'}"
        with Redis.from_url(url) as redis_of_agent, pytest.raises(NoPermissionError):
            redis_of_agent.set("rq:job:1", "mine")


def test_approval_policy_reaches_dispatchers_and_agents_and_the_key_of_answers_no_agent(
    cluster: Cluster, servers: PrivateServers, tmp_path: Path
) -> None:
    copy = shutil.copytree(K8S, tmp_path / "k8s")
    rule = {"name": "never", "capability": "text.count", "when": "input == 'never'", "risk": "low", "action": "refuse"}
    (copy / "components" / "approvals" / "policy.yaml").write_text(json.dumps({"rules": [rule]}))
    overlay = copy / "overlays" / "dev"
    made = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    key = {"name": "approval-key", "literals": [f"key={'k' * 32}"], "options": {"disableNameSuffixHash": True}}
    made |= {"namespace": "approvals", "secretGenerator": [key]}
    made["components"].append("../../components/approvals")
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(made))
    refused, keys = "", {}

    def look(pods: list[LocalPod]) -> None:
        nonlocal refused, keys
        command = [sys.executable, "-m", "coditect", "task", "submit", "text.count", '"never"', "--wait", "30s"]
        refused = subprocess.run(command, env=_environment(servers), capture_output=True, text=True, check=False).stderr
        keys = {pod.container["name"]: pod.environment.get("CODITECT_APPROVAL_KEY") for pod in pods}

    play(cluster, overlay, "approvals", servers, tmp_path / "pods", look)

    assert "refused_by_policy" in refused
    assert keys == {"dispatcher": "k" * 32, "api": "k" * 32, "agent": None}


def test_task_that_runs_when_its_pod_is_asked_to_end_is_finished(
    cluster: Cluster, servers: PrivateServers, tmp_path: Path
) -> None:
    copy = shutil.copytree(K8S, tmp_path / "k8s")
    agent = copy / "agents" / "counter" / "agent.py"
    slow = "print(text, flush=True)\n    await asyncio.sleep(5 if text == 'dawdle' else 0)\n    return"
    agent.write_text("import asyncio\n" + agent.read_text().replace("return", slow))
    kustomization = copy / "overlays" / "dev" / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("coditect-dev", "drained"))
    answers = []

    def look(pods: list[LocalPod]) -> None:
        (counter,) = (pod for pod in pods if pod.folder.name.startswith("counter"))
        command = [sys.executable, "-m", "coditect", "task", "submit", "text.count", '"dawdle"', "--wait", "30s"]
        with subprocess.Popen(command, env=_environment(servers), stdout=subprocess.PIPE, text=True) as waits:
            until(lambda: "dawdle" in (counter.folder / "log").read_text(), "the task runs")
            counter.terminate()
            assert counter.started[0].wait(counter.pod["spec"]["terminationGracePeriodSeconds"]) == 0
            answers.append(waits.communicate(timeout=60)[0])

    play(cluster, kustomization.parent, "drained", servers, tmp_path / "pods", look)

    assert answers == ["1\n"]


BREAKAGES = {
    "a probe path": ("base/dispatcher.yaml", "path: /readyz", "path: /ready", "readinessProbe of dispatcher"),
    "a key of a NetworkPolicy": ("base/network-policies.yaml", "egress:", "egres:", "spec.egres: field not declared"),
    "the place of the API's keys": ("components/api/api.yaml", "path: api-keys", "path: keys", r"answers \[401, 401\]"),
    "a missing Secret": ("agent/agent.yaml", "name: redis\n", "name: radis\n", 'secrets "radis" not found'),
}


@pytest.mark.parametrize("broken", BREAKAGES)
def test_broken_manifest_is_found(broken: str, cluster: Cluster, servers: PrivateServers, tmp_path: Path) -> None:
    file, text, instead, found = BREAKAGES[broken]
    copy = shutil.copytree(K8S, tmp_path / "k8s")
    before = (copy / file).read_text()
    (copy / file).write_text(before.replace(text, instead))
    namespace = f"broken-{list(BREAKAGES).index(broken)}"
    kustomization = copy / "overlays" / "dev" / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("coditect-dev", namespace))

    with pytest.raises(Refused, match=found):
        play(cluster, kustomization.parent, namespace, servers, tmp_path / "pods")

    assert text in before
