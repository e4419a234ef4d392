"""The work of a kubelet without containers: a pod's command, environment, volumes and probes, as a process.

The pod is read from the API server. Bubblewrap gives it its user, a root that it cannot write, and its volumes where it
mounts them. Its image's entry point is this interpreter's `coditect`; names of services become loopback addresses, and
its own address is one of 127.0.0.0/8.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import psutil

from tests.k8s.cluster import Cluster, Refused
from tests.servers import ROOT

READY_SECONDS = 30.0
MACHINES = {"etc", "tmp", "var", "run", "proc", "dev", "sys", "home"}
"""The folders of the machine's root that a pod does not see."""
PROGRAMS = {
    "coditect": (sys.executable, "-m", "coditect"),
    "python3": (sys.executable,),
    "redis-server": ("redis-server",),
}
ENTRY_POINTS = {"redis": "redis-server"}
"""The programs of images, by the names of their containers; of every other one it is ours."""


@dataclass(frozen=True)
class Kubelet:
    """What stands in for containers and DNS: where files go, and what each service's `name:port` is here."""

    cluster: Cluster
    folder: Path
    names: Mapping[str, str]

    def pods(self, namespace: str, component: str) -> list[Any]:
        """Return the pods of a component that wait for their kubelet, which is us."""
        return list(self.cluster.get("pods", "-n", namespace, "-l", f"app.kubernetes.io/component={component}"))

    @contextmanager
    def running(self, pod: Any, address: str) -> Iterator[LocalPod]:
        """Run a pod's container; its process gets SIGTERM behind the block."""
        local = LocalPod(self, pod, self.folder / pod["metadata"]["name"], address)
        log = local.folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                local.command, env=local.environment, stdout=output, stderr=output, cwd=local.folder
            )
            local.started.append(process)
            try:
                yield local
            finally:
                local.terminate()
                local.exit_code.append(process.wait(pod["spec"]["terminationGracePeriodSeconds"]))


@dataclass(frozen=True)
class LocalPod:
    """One pod as a process."""

    kubelet: Kubelet
    pod: Any
    folder: Path
    address: str
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    exit_code: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        for volume in self.pod["spec"]["volumes"]:
            self._fill(volume)

    @property
    def container(self) -> Any:
        """The only container of the pod."""
        (container,) = self.pod["spec"]["containers"]
        return container

    @property
    def command(self) -> list[str]:
        """The command line, as the container runtime would put it together."""
        image = [ENTRY_POINTS.get(self.container["name"], "coditect")]
        given: list[str] = [*self.container.get("command", image), *self.container.get("args", [])]
        program, *words = given
        return [*self.confined(), *PROGRAMS[program], *(self._expanded(word) for word in words)]

    def confined(self) -> list[str]:
        """The beginning of a command line that runs what follows as the pod's user, among the pod's files."""
        context = self.pod["spec"]["securityContext"]
        words = ["bwrap", "--die-with-parent", "--unshare-user"]
        words += ["--uid", str(context["runAsUser"]), "--gid", str(context["runAsGroup"])]
        for path in sorted(Path("/").iterdir()):
            if path.is_symlink():
                words += ["--symlink", str(path.readlink()), str(path)]
            elif path.is_dir() and path.name not in MACHINES:
                words += ["--ro-bind", str(path), str(path)]
        words += ["--proc", "/proc", "--dev", "/dev", "--ro-bind", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        for needed in (str(ROOT), sys.prefix, sys.base_prefix):
            words += ["--ro-bind", needed, needed]
        for mount in self.container["volumeMounts"]:
            bind = "--ro-bind" if mount.get("readOnly") else "--bind"
            words += [bind, str(self.folder / mount["name"]), mount["mountPath"]]
        if self.container["securityContext"]["readOnlyRootFilesystem"]:
            words += ["--remount-ro", "/"]
        return [*words, "--chdir", "/", "--"]

    def writable(self, *folders: str) -> set[str]:
        """Return those of the folders in which the pod can write a file."""
        script = 'for folder; do touch "$folder/tried" 2>/dev/null && echo "$folder"; done; true'
        tried = [*self.confined(), "/bin/sh", "-c", script, "sh", *folders]
        return set(subprocess.run(tried, capture_output=True, text=True, check=True).stdout.split())

    def run(self, *words: str, given: str = "") -> str:
        """Return what our command line prints in the pod, as by `kubectl exec`; raises Refused when it fails."""
        command = [*self.confined(), *PROGRAMS["coditect"], *words]
        done = subprocess.run(command, env=self.environment, input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(f"{' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def terminate(self) -> None:
        """Ask the program, which is bubblewrap's child, to end."""
        for child in psutil.Process(self.started[0].pid).children() if self.started[0].poll() is None else ():
            child.terminate()

    @property
    def environment(self) -> dict[str, str]:
        """The variables: of the API server's address, of config maps, and of the container's own list, in order."""
        api = urlsplit(self.kubelet.cluster.url)
        found = {"KUBERNETES_SERVICE_HOST": str(api.hostname), "KUBERNETES_SERVICE_PORT": str(api.port)}
        for source in self.container.get("envFrom", ()):
            found |= self._object("configmap", source["configMapRef"]["name"])["data"]
        for one in self.container.get("env", ()):
            found[one["name"]] = self._value(one, found)
        found = {name: self._addressed(value) for name, value in found.items()}
        return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **found}

    def ready(self) -> None:
        """Poll the startup probe, then the readiness probe, at their pace; raises Refused when one never holds."""
        startup = self.container["startupProbe"]
        self._hold("startupProbe", startup["periodSeconds"] * startup["failureThreshold"])
        self._hold("readinessProbe", READY_SECONDS)
        if not self.holds("livenessProbe"):
            raise Refused(f"livenessProbe of {self.folder.name}")

    def holds(self, probe: str) -> bool:
        """Tell whether a probe succeeds now."""
        get = self.container[probe]["httpGet"]
        try:
            with urlopen(
                self.url(get["port"], get["path"]), timeout=self.container[probe].get("timeoutSeconds", 1)
            ) as answer:
                return bool(200 <= answer.status < 400)
        except (URLError, TimeoutError, ConnectionError):
            return False

    def url(self, port: str, path: str) -> str:
        """Return the URL of a path at a named port of the pod."""
        ports = {one["name"]: one["containerPort"] for one in self.container["ports"]}
        return f"http://{self.address}:{ports.get(port, port)}{path}"

    def _hold(self, probe: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.holds(probe):
            if self.started[0].poll() is not None or time.monotonic() > end:
                raise Refused(f"{probe} of {self.folder.name}: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(self.container[probe]["periodSeconds"])

    def _object(self, kind: str, name: str) -> Any:
        return self.kubelet.cluster.get(kind, name, "-n", self.pod["metadata"]["namespace"])

    def _value(self, one: Any, found: Mapping[str, str]) -> str:
        source = one.get("valueFrom", {})
        if key := source.get("secretKeyRef"):
            return base64.b64decode(self._object("secret", key["name"])["data"][key["key"]]).decode()
        if "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == "status.podIP"
            return self.address
        return re.sub(r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), one["value"])

    def _expanded(self, word: str) -> str:
        return re.sub(r"\$\((\w+)\)", lambda name: self.environment.get(name[1], name[0]), word)

    def _addressed(self, value: str) -> str:
        for name, address in self.kubelet.names.items():
            value = re.sub(rf"\b{name.partition(':')[0]}(\.[\w.-]+)?:{name.partition(':')[2]}\b", address, value)
        return value

    def _fill(self, volume: Any) -> None:
        folder = self.folder / volume["name"]
        folder.mkdir()
        if "configMap" in volume:
            self._write(folder, self._object("configmap", volume["configMap"]["name"])["data"])
        elif "secret" in volume:
            self._write_secret(folder, volume["secret"]["secretName"], volume["secret"]["items"])
        for source in volume.get("projected", {}).get("sources", ()):
            if "serviceAccountToken" in source:
                words = ("create", "token", self.pod["spec"]["serviceAccountName"])
                token = self.kubelet.cluster.kubectl(*words, "-n", self.pod["metadata"]["namespace"])
                self._write(folder, {source["serviceAccountToken"]["path"]: token})
            elif "configMap" in source:
                self._write(folder, self._object("configmap", source["configMap"]["name"])["data"])
            elif "secret" in source:
                self._write_secret(folder, source["secret"]["name"], source["secret"]["items"])
            else:
                self._write(folder, {"namespace": self.pod["metadata"]["namespace"]})

    def _write_secret(self, folder: Path, name: str, items: Any) -> None:
        data = self._object("secret", name)["data"]
        self._write(folder, {one["path"]: base64.b64decode(data[one["key"]]).decode() for one in items})

    def _write(self, folder: Path, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (folder / name).write_text(text)
