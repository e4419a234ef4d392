"""What each overlay is when kustomize has put it together, by the kubectl of this machine."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from tests.docs.pages import blocks
from tests.servers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl, which has kustomize, is not here")
K8S = ROOT / "k8s"
OVERLAYS = sorted(one.name for one in (K8S / "overlays").iterdir())
SECURED = ["production", "staging"]
COMPONENT = "app.kubernetes.io/component"
ROLES = {"agent", "api", "dispatcher"}
PLAIN = {5672, 6379, 15672, 15692}
"""The ports of RabbitMQ and Redis at which nothing is encrypted."""
Manifest = dict[str, Any]


def kustomized(folder: Path) -> list[Manifest]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: list[Manifest] = []
    for document in yaml.load_all(done.stdout, yaml.CSafeLoader):
        found += document["items"] if document["kind"] == "List" else [document]
    return found


@cache
def rendered(overlay: str) -> list[Manifest]:
    return kustomized(K8S / "overlays" / overlay)


def of(overlay: str, kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in rendered(overlay) if one["kind"] == kind}


def pods(overlay: str) -> Iterator[tuple[str, str, Manifest]]:
    """Yield the name, component and pod of each workload; of an operator's object, what it says of its pods."""
    for one in rendered(overlay):
        spec = one["spec"] if isinstance(one.get("spec"), dict) else {}
        for template in (spec.get("template"), spec.get("podTemplateSpec")):
            if isinstance(template, dict) and "containers" in template.get("spec", {}):
                yield one["metadata"]["name"], template["metadata"]["labels"][COMPONENT], template["spec"]


def containers(overlay: str) -> Iterator[tuple[str, Manifest]]:
    for name, _, pod in pods(overlay):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            yield f"{name} {container['name']}", container


def variables(pod: Manifest) -> dict[str, Any]:
    return {one["name"]: one for one in pod["containers"][0]["env"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_is_of_one_version_restricted_bounded_and_probed(overlay: str) -> None:
    operators = set(of(overlay, "FoundationDBBackup"))  # the operator says the image and command of its containers
    ending = set(of(overlay, "Job"))

    assert len(list(containers(overlay))) > 5
    for name, container in containers(overlay):
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        if name.split()[0] not in operators:
            assert re.search(r":(?!latest)[\w.-]+(@sha256:[0-9a-f]{64})?$", container["image"]), name
            assert container["securityContext"]["readOnlyRootFilesystem"] is True, name
    for name, _, pod in pods(overlay):
        if name not in operators | ending:
            assert {"livenessProbe", "readinessProbe"} <= pod["containers"][0].keys(), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_agents_and_api_are_spread_over_nodes_and_zones_and_one_of_each_is_disrupted_at_a_time(overlay: str) -> None:
    spread = {one: deployment for one, deployment in of(overlay, "Deployment").items() if _role(deployment) in ROLES}
    budgets = of(overlay, "PodDisruptionBudget")

    assert {_role(one) for one in spread.values()} == ROLES
    for name, deployment in spread.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        selector = deployment["spec"]["selector"]
        if _role(deployment) != "dispatcher":
            constraints = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
            assert [one["topologyKey"] for one in constraints] == [
                "kubernetes.io/hostname",
                "topology.kubernetes.io/zone",
            ]
            assert [one["labelSelector"] for one in constraints] == [selector] * 2, "of no other agent"
        assert selector["matchLabels"].items() <= labels.items()
        assert budgets[name]["spec"] == {"maxUnavailable": 1, "selector": selector}


def _role(deployment: Manifest) -> str:
    return str(deployment["metadata"]["labels"].get(COMPONENT))


@pytest.mark.parametrize("overlay", SECURED)
def test_fleet_reaches_its_servers_by_tls_at_names_of_their_certificates(overlay: str) -> None:
    names = {
        one["spec"]["secretName"]: set(one["spec"].get("dnsNames", ())) for one in of(overlay, "Certificate").values()
    }
    for name, role, pod in pods(overlay):
        if role not in ROLES:
            continue
        values = variables(pod)
        urls = {key: urlsplit(one["value"]) for key, one in values.items() if key.endswith("_URL")}
        assert {key: f"{url.scheme}:{url.port}" for key, url in urls.items()} == {
            "CODITECT_AMQP_URL": "amqps:5671",
            "CODITECT_REDIS_URL": "rediss:6380",
            **({} if role == "agent" else {"CODITECT_MANAGEMENT_URL": "https:15671"}),
        }, name
        for url in urls.values():
            ((authority,),) = parse_qs(url.query).values()
            assert _secret_at(pod, authority) == (f"{url.hostname}-tls", "ca.crt"), url
            assert url.hostname in names[f"{url.hostname}-tls"]
        order = list(values)
        used = [(one, key) for key in urls for one in re.findall(r"\$\((\w+)\)", values[key]["value"])]
        assert all(order.index(one) < order.index(key) for one, key in used), "a variable has a value only behind it"
    triggers = [trigger for one in of(overlay, "ScaledObject").values() for trigger in one["spec"]["triggers"]]
    for host in [one["metadata"]["host"] for one in triggers if one["type"] == "rabbitmq"]:
        assert (urlsplit(host).scheme, urlsplit(host).port) == ("https", 15671)
        assert urlsplit(host).hostname in names["rabbitmq-tls"]
    assert of(overlay, "RabbitmqCluster")["rabbitmq"]["spec"]["tls"] == {
        "secretName": "rabbitmq-tls",
        "disableNonTLSListeners": True,
    }


def _secret_at(pod: Manifest, path: str) -> tuple[str, str]:
    """The Secret and key of a file that the first container of a pod sees; nothing of the Secret but this key."""
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if path.startswith(f"{one['mountPath']}/"))
    (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
    files = {
        item["path"]: (source["secret"]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }
    return files[path.removeprefix(f"{mount['mountPath']}/")]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_port_without_tls_is_open_where_everything_goes_by_tls(overlay: str) -> None:
    policies = of(overlay, "NetworkPolicy").values()
    rules = [rule for one in policies for way in ("ingress", "egress") for rule in one["spec"].get(way, ())]
    ports = {port["port"] for rule in rules for port in rule.get("ports", ())}

    assert ports & PLAIN == (set() if overlay in SECURED else {5672, 6379, 15672})
    assert ports & {5671, 6380, 15671} == ({5671, 6380, 15671} if overlay in SECURED else set())


@pytest.mark.parametrize("overlay", SECURED)
def test_each_role_has_users_of_its_own_that_exist_and_sees_no_other_s_password(overlay: str) -> None:
    users, permissions = of(overlay, "User"), of(overlay, "Permission")
    redis = of(overlay, "Deployment")["redis"]["spec"]["template"]["spec"]["containers"][0]
    words = " ".join(redis["args"])
    rights = dict(re.findall(r"--user (\w+) (.*?)(?= --)", words))

    assert users.keys() == permissions.keys() == ROLES | {"keda"}
    assert all(one["spec"]["userReference"] == {"name": name} for name, one in permissions.items())
    assert rights.keys() == ROLES | {"default"}
    assert rights["default"] == "off"
    for name, role, pod in pods(overlay):
        if role in ROLES:
            text = json.dumps(pod["containers"][0]["env"])
            seen = set(re.findall(r'"name": "([\w-]+)"', text)) - set(variables(pod))
            assert seen == {f"{role}-user-credentials", f"redis-{role}"}, name
            assert urlsplit(variables(pod)["CODITECT_REDIS_URL"]["value"]).username == role
    secrets = {one["name"]: one["valueFrom"]["secretKeyRef"]["name"] for one in redis["env"]}
    assert {role: f">$({role.upper()}_PASSWORD)" in rights[role].split() for role in ROLES} == dict.fromkeys(
        ROLES, True
    )
    assert secrets == {f"{role.upper()}_PASSWORD": f"redis-{role}" for role in ROLES}


def test_only_dispatchers_reach_the_jobs_of_rq_and_close_the_connections_of_others() -> None:
    users = of("production", "User")
    args = of("production", "Deployment")["redis"]["spec"]["template"]["spec"]["containers"][0]["args"]
    rights = dict(re.findall(r"--user (\w+) (.*?)(?= --)", " ".join(args)))
    tags = {name: one["spec"].get("tags", []) for name, one in users.items()}

    assert {name for name, given in rights.items() if "~rq:*" in given} == {"dispatcher"}
    assert all("-@admin -@dangerous" in given for name, given in rights.items() if name != "default")
    assert tags == {"agent": [], "api": ["monitoring"], "keda": ["monitoring"], "dispatcher": ["administrator"]}


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("agent", ["read tasks.a.p0", "write coditect.submit", "configure agent.a.mail", "write amq.default"], []),
        ("agent", [], ["read results.1", "read control", "read dead.a", "configure tasks.a.p0", "write tasks.a.p0"]),
        ("api", ["read dead.a", "read unrouted", "configure webhook.a.b"], ["read results.1", "configure control"]),
        ("dispatcher", ["read results.1", "configure trigger.a", "configure agent.a.tasks"], ["read tasks.a.p0"]),
        ("dispatcher", ["read dead.notices"], ["read dead.a", "configure coditect.tasks"]),
        ("keda", [], ["read tasks.a.p0", "write coditect.submit", "configure reply.a"]),
    ],
)
def test_permissions_are_what_the_role_needs(role: str, may: list[str], may_not: list[str]) -> None:
    granted = of("production", "Permission")[role]["spec"]["permissions"]

    for what, holds in (*((one, True) for one in may), *((one, False) for one in may_not)):
        kind, name = what.split()
        assert (re.search(granted[kind], name) is not None) is holds, what


def test_ledger_of_production_has_a_backup_of_its_version() -> None:
    (backup,) = of("production", "FoundationDBBackup").values()
    (cluster,) = of("production", "FoundationDBCluster").values()

    assert backup["spec"]["clusterName"] == cluster["metadata"]["name"]
    assert backup["spec"]["version"] == cluster["spec"]["version"]
    assert "backupState" not in backup["spec"], "it runs"


@pytest.mark.parametrize("overlay", SECURED)
def test_metrics_traces_logs_and_dashboards_have_a_place(overlay: str) -> None:
    assert {"prometheus", "grafana", "loki", "jaeger", "collector"} <= of(overlay, "Deployment").keys()
    assert "grafana-dashboards" in of(overlay, "ConfigMap")


def test_fleet_is_that_of_compose() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    wanted = {
        f"{name}-agent": (one["command"], one.get("deploy", {}).get("replicas", 1))
        for name, one in services.items()
        if one.get("image") == "coditect:fleet"
    }

    agents = {name: one["spec"] for name, one in of("fleet", "Deployment").items() if _role(one) == "agent"}

    assert {
        name: (one["template"]["spec"]["containers"][0]["args"], one.get("replicas", 1)) for name, one in agents.items()
    } == wanted
    assert {one["template"]["spec"]["containers"][0]["image"] for one in agents.values()} == {"coditect-fleet:0.1.0"}


@pytest.mark.parametrize(("component", "kind"), {"gateway": "HTTPRoute", "ingress": "Ingress"}.items())
def test_example_of_a_way_in_leads_to_the_api(component: str, kind: str, tmp_path: Path) -> None:
    copy = with_components(tmp_path, component)
    (way,) = (one for one in kustomized(copy) if one["kind"] == kind)
    service = of("dev", "Service")["api"]["spec"]["ports"][0]

    ends = re.findall(r'"(?:port|number)": (\d+)|"port": \{"name": "(\w+)"', json.dumps(way["spec"]))
    assert ends
    assert all(number == str(service["port"]) or name == service["name"] for number, name in ends)


def test_example_of_the_documentation_changes_the_name_and_lets_the_gateway_in(tmp_path: Path) -> None:
    (example,) = [one.text for one in blocks(ROOT / "docs" / "kubernetes.md") if one.text.startswith("components:")]
    copy = with_components(tmp_path, "gateway")
    file = copy / "kustomization.yaml"
    made = yaml.safe_load(file.read_text())
    made["patches"] += yaml.safe_load(example)["patches"]
    file.write_text(yaml.safe_dump(made))

    found = {(one["kind"], one["metadata"]["name"]): one.get("spec", {}) for one in kustomized(copy)}

    assert found["HTTPRoute", "api"]["hostnames"] == ["agents.example.com"]
    (way,) = found["NetworkPolicy", "api"]["ingress"]
    assert way["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}}]
    assert found["HTTPRoute", "api"]["parentRefs"][0]["namespace"] == "gateways"


def with_components(folder: Path, *components: str) -> Path:
    """Return a copy of `production` that has more components."""
    copy = shutil.copytree(K8S, folder / "k8s")
    file = copy / "overlays" / "production" / "kustomization.yaml"
    made = yaml.safe_load(file.read_text())
    made["components"] += [f"../../components/{one}" for one in components]
    file.write_text(yaml.safe_dump(made))
    return file.parent


PIN = runpy.run_path(str(ROOT / "scripts" / "pin_images.py"))
DIGEST = f"sha256:{'0' * 64}"


def test_images_of_production_are_pinned_all_or_none_at_the_tags_that_are_written() -> None:
    """None as they are here: a digest is what a registry says, and `make digests` asks it."""
    pinned = yaml.safe_load((K8S / "components" / "digests" / "kustomization.yaml").read_text())["images"]
    images = PIN["images"](yaml.safe_dump_all(rendered("production")))

    assert len(images) == 9
    assert [f"{one['name']}:{one['newTag']}" for one in pinned] in ([], images), "a tag was changed: make digests"
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one["digest"]) for one in pinned)


def test_every_image_of_production_has_a_digest_once_the_registries_were_asked(tmp_path: Path) -> None:
    copy = shutil.copytree(K8S, tmp_path / "k8s")

    PIN["main"](["--manifests", str(copy), "--ask", f"echo {DIGEST}"])

    found = kustomized(copy / "overlays" / "production")
    images = list(PIN["_images"](found))
    assert len(images) > 9
    assert {image.partition("@")[2] for image in images} == {DIGEST}
    assert {image.partition("@")[0] for image in images} == set(PIN["images"](yaml.safe_dump_all(found)))
    made = [one["spec"]["mainContainer"] for one in found if one["kind"].startswith("FoundationDB")]
    version = of("production", "FoundationDBCluster")["foundationdb"]["spec"]["version"]
    config = {"version": version, "baseImage": "foundationdb/fdb-kubernetes-monitor", "tag": f"{version}@{DIGEST}"}
    assert made == [{"imageConfigs": [config]}] * 2


def test_nothing_is_pinned_when_a_registry_does_not_answer(tmp_path: Path) -> None:
    copy = shutil.copytree(K8S, tmp_path / "k8s")
    file = copy / "components" / "digests" / "kustomization.yaml"
    before = file.read_text()

    for command, said in (("echo no", "No digest of"), ("nowhere IMAGE", "nowhere is not here")):
        with pytest.raises(SystemExit, match=said):
            PIN["main"](["--manifests", str(copy), "--ask", command])

    assert file.read_text() == before
