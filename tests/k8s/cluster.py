"""A Kubernetes control plane on loopback: etcd, API server, controllers, scheduler, and nodes that kwok plays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from coditect.aio import launch
from coditect.local.servers import free_ports
from tests.servers import ROOT

SECONDS = 120.0
NODES = 4
VOLUMES = 24
TOKEN = "of-the-tests"
STAGES = ("node/fast/node-initialize", "node/heartbeat-with-lease/node-heartbeat-with-lease")
POD_STAGES = ("pod/fast/pod-ready", "pod/fast/pod-complete", "pod/fast/pod-delete")


class Refused(AssertionError):
    """What the API server, or the check of a pod, refused."""


def until(condition: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    """Wait until a condition holds; `what` names it in the error."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise Refused(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Cluster:
    """A running control plane, asked by kubectl."""

    programs: Path
    folder: Path
    url: str

    def kubectl(self, *words: str, given: object = None) -> str:
        """Return what kubectl prints; raises Refused with what it says when it fails."""
        text = None if given is None else json.dumps(given)
        command = [str(self.programs / "kubectl"), "--kubeconfig", str(self.folder / "kubeconfig"), *words]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=SECONDS)
        if done.returncode:
            raise Refused(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *words: str) -> Any:
        """Return an object, or the items of a list of objects."""
        found = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found.get("items", found)

    def apply(self, folder: Path) -> None:
        """Apply an overlay as its user does, twice: what the API server does not know is an error."""
        for _ in range(2):
            self.kubectl("apply", "--server-side", "--validate=strict", "--force-conflicts", "-k", str(folder))

    def create(self, *objects: object) -> None:
        """Apply objects that the tests made."""
        self.kubectl("apply", "--server-side", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": objects})

    def ready(self, namespace: str) -> None:
        """Wait until every Deployment and StatefulSet has all of its replicas of the newest version."""
        for one in self.get("deployments,statefulsets", "-n", namespace):
            name = f"{one['kind'].lower()}/{one['metadata']['name']}"
            self.kubectl("rollout", "status", name, "-n", namespace, f"--timeout={SECONDS:.0f}s")


@contextmanager
def running_cluster(programs: Path, folder: Path) -> Iterator[Cluster]:
    """Yield a control plane with its files below `folder`; every process is ended behind the block."""
    etcd, peer, api, manager, scheduler, kwok = free_ports(6)
    cluster = Cluster(programs, folder, f"https://127.0.0.1:{api}")
    _files(cluster)
    config = f"--kubeconfig={folder / 'kubeconfig'}"
    local = ["--bind-address=127.0.0.1", "--authentication-skip-lookup=true", "--leader-elect=false", config]
    with ExitStack() as stack:

        def start(name: str, *words: str) -> None:
            stack.enter_context(_process(programs / name, words, folder))

        urls = [f"--{kind}-client-urls=http://127.0.0.1:{etcd}" for kind in ("listen", "advertise")]
        peers = [f"--listen-peer-urls=http://127.0.0.1:{peer}", f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync"]
        start("etcd", *urls, *peers)
        start("kube-apiserver", *_api_server(folder, etcd, api))
        until(lambda: _answers(cluster), f"the API server answers; see {folder}/kube-apiserver.log")
        keys = [f"--service-account-private-key-file={folder / 'key'}", f"--root-ca-file={_authority(folder)}"]
        start(
            "kube-controller-manager",
            f"--secure-port={manager}",
            *keys,
            "--horizontal-pod-autoscaler-sync-period=2s",
            *local,
        )
        start("kube-scheduler", f"--secure-port={scheduler}", *local)
        stages = [f"--config={programs.parent / 'stages' / one}.yaml" for one in (*STAGES, *POD_STAGES)]
        # Without leases the nodes are lost after forty seconds, and their pods are not ready any more.
        leases = "--node-lease-duration-seconds=40"
        start(
            "kwok",
            config,
            "--manage-all-nodes",
            leases,
            f"--server-address=127.0.0.1:{kwok}",
            "--cidr=10.1.0.0/16",
            *stages,
        )
        _furnish(cluster)
        yield cluster


def _answers(cluster: Cluster) -> bool:
    try:
        return "ok" in cluster.kubectl("get", "--raw", "/readyz")
    except Refused:
        return False


def _authority(folder: Path) -> Path:
    return folder / "certificates" / "apiserver.crt"


def _api_server(folder: Path, etcd: int, port: int) -> Sequence[str]:
    return (
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--cert-dir={folder / 'certificates'}",
        f"--token-auth-file={folder / 'tokens'}",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'key'}",
        f"--service-account-signing-key-file={folder / 'key'}",
    )


def _files(cluster: Cluster) -> None:
    """Write what the programs read: the key of service accounts, the token of the tests, and the kubeconfig."""
    folder = cluster.folder
    subprocess.run(["openssl", "genrsa", "-out", folder / "key", "2048"], check=True, capture_output=True)
    (folder / "tokens").write_text(f"{TOKEN},tests,tests,system:masters\n")
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "it", "cluster": {"server": cluster.url, "insecure-skip-tls-verify": True}}],
        "users": [{"name": "it", "user": {"token": TOKEN}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "current-context": "it",
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))


@contextmanager
def _process(program: Path, words: Sequence[str], folder: Path) -> Iterator[None]:
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    ends_with_us = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid())]
    with (folder / f"{program.name}.log").open("wb") as log:
        process = subprocess.Popen([*ends_with_us, program, *words], stdout=log, stderr=log, env=clean, cwd=folder)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def _furnish(cluster: Cluster) -> None:
    """Add nodes, volumes, and the definitions of the operators' objects."""
    size = {"cpu": "16", "memory": "64Gi", "pods": "110"}
    nodes = [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": size, "capacity": size},
        }
        for name in (f"node-{number}" for number in range(NODES))
    ]
    kind = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "by-hand", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "kubernetes.io/no-provisioner",
    }
    volumes = [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"volume-{number}"},
            "spec": {
                "capacity": {"storage": "16Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "by-hand",
                "hostPath": {"path": str(cluster.folder / f"volume-{number}")},
            },
        }
        for number in range(VOLUMES)
    ]
    cluster.create(*nodes, kind, *volumes)
    for crds in (*sorted((cluster.programs.parent / "crds").iterdir()), ROOT / "k8s" / "crds"):
        cluster.kubectl("apply", "--server-side", "-f", str(crds))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", f"--timeout={SECONDS:.0f}s")
    cluster.kubectl("wait", "--for=condition=Ready", "node", "--all", f"--timeout={SECONDS:.0f}s")
