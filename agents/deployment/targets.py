"""Where the deployer releases a commit: a folder of this machine, a container of it, or a Deployment of Kubernetes.

::

    a folder      a copy of the commit's files; `agents/deployment/service.py` draws it
    a container   an image that podman or docker builds of the commit, and runs in place of the container before, which
                  is kept, stopped, as NAME-before
    a Deployment  an image of the commit, which kubectl gives the Deployment; Kubernetes rolls it out, and back

A release may be done twice, and be killed at any point: what was there before is kept where the release is, with the
id of its task, so that the second attempt does not take the first one's version for it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from agents.deployment.service import Service, ask_health, wait_for_version
from agents.tools.child import run_program
from agents.tools.sources import confined
from coditect.errors import InputError, SetupError, TaskFailed

FOLDER_SECONDS = 10.0
"""How long a service in a folder may take to be well."""
_COMMAND_SECONDS = 60.0
_BUILD_SECONDS = 600.0
_STOP_SECONDS = 5
_LOOK_SECONDS = 0.2
_TAIL_CHARACTERS = 1_000
_MOST_OUTPUT = 16_777_216
_VERSION, _TASK = "coditect.version", "coditect.task"
"""The labels of a container: the commit, and the task that released it."""
_RELEASE, _PREVIOUS, _REVISION = "coditect/task", "coditect/previous", "coditect/previous-revision"
"""The annotations of a Deployment: the task of the last release, and what was there before, as image and revision."""
_MISSING = re.compile(
    r"no such (?:container|image|object)|(?:image|container) not known|no container with name", re.IGNORECASE
)
"""How podman and docker say that there is no such container or image; a host or a socket may be missing as well."""
_IMAGE = r"^[a-z0-9][a-z0-9._/:-]{0,254}$"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ContainerSpec(_Spec):
    """A service in a container of this machine, whose image is built by the commit's own Dockerfile."""

    container: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", description="the container's name")
    image: str = Field(pattern=_IMAGE, description="the image's name; the commit becomes its tag")
    port: int = Field(ge=1, le=65_535, description="the port of 127.0.0.1 that the service answers at")
    container_port: int = Field(8000, ge=1, le=65_535, description="the port in the container")
    within_seconds: float = Field(60, gt=0, le=240, description="how long it may take to be well")


class KubernetesSpec(_Spec):
    """A Deployment of the cluster that kubectl is set up for."""

    deployment: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,252}$")
    namespace: str = Field("default", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    image: str = Field(pattern=_IMAGE, description="the image's name; the commit is its tag")
    container: str = Field("", pattern=r"^[a-z0-9-]{0,63}$", description="which container; empty: the first")
    build: bool = Field(False, description="build and push the image; else the commit's is in the registry already")
    within_seconds: float = Field(120, gt=0, le=240, description="how long the roll-out may take")


class Target(Protocol):
    """A place where commits are released as versions."""

    @property
    def name(self) -> str:
        """The name of the lock by which releases take turns."""

    def prepare(self, version: str, tree: Path) -> None:
        """Do what takes long and changes nothing that runs: build the image of a commit's files."""

    def release(self, version: str, tree: Path, task: str) -> str | None:
        """Release the files of a commit as a version, and return the version before; None if there was none.

        Idempotent by the task's name. A release that fails leaves what was there before, since nobody rolls it back.
        """

    def roll_back(self, version: str, previous: str | None) -> str | None:
        """Go back from a version to the one before, wait until that is well, and return the present one.

        A target that has another version by now is left alone.

        Raises:
            TaskFailed: the version before is not well either.
        """

    def probe(self, version: str) -> str:
        """Wait until the version is well, and return where it answers.

        Raises:
            TaskFailed: it is not in time; the error says why.
        """


def target_of(spec: str | ContainerSpec | KubernetesSpec) -> Target:
    """Return the place that a request names; a text is a folder.

    Raises:
        InputError: not retryable; the folder is outside of the fleet's.
    """
    match spec:
        case ContainerSpec():
            return ContainerTarget(spec)
        case KubernetesSpec():
            return KubernetesTarget(spec)
        case str():
            return FolderTarget(Service(Path(confined(spec))))


@dataclass(frozen=True, slots=True)
class FolderTarget:
    """A service in a folder of this machine."""

    service: Service

    @property
    def name(self) -> str:
        """The lock's name, which the healer uses, too."""
        return f"service:{self.service.folder.resolve()}"

    def prepare(self, version: str, tree: Path) -> None:
        """Do nothing: a copy is made soon."""

    def release(self, version: str, tree: Path, task: str) -> str | None:
        """Copy the files into the version's folder, switch to it by one rename, and restart."""
        before = self.service.note(f"before-{task}", self.service.version or "")
        self.service.release_folder(version).parent.mkdir(parents=True, exist_ok=True)
        self.service.install(version, tree)
        try:
            self.service.switch(version)
        except (OSError, subprocess.SubprocessError):
            self.service.switch(before or None)
            raise
        return before or None

    def roll_back(self, version: str, previous: str | None) -> str | None:
        """Switch to the version before, and wait until it is well; without one, stop."""
        if self.service.version in (version, previous):
            self.service.switch(previous)
            if previous is not None:
                self.probe(previous)
        return self.service.version

    def probe(self, version: str) -> str:
        """Wait until `/health` answers as the version."""
        self.service.probe(version, within_seconds=FOLDER_SECONDS)
        return f"http://127.0.0.1:{self.service.port}"


@dataclass(frozen=True, slots=True)
class ContainerTarget:
    """A service in a container of this machine, by podman, or by docker where there is no podman."""

    spec: ContainerSpec

    @property
    def name(self) -> str:
        """The name of the lock that a release to this target holds."""
        return f"container:{self.spec.container}"

    def prepare(self, version: str, tree: Path) -> None:
        """Build the container image of a version from the files in `tree`."""
        build_image(f"{self.spec.image}:{version}", tree)

    def release(self, version: str, tree: Path, task: str) -> str | None:
        """Stop and rename the container that is there, and start another one."""
        present = self._labels(self.spec.container)
        try:
            if present is not None and present.get(_TASK) == task:
                _container("start", self.spec.container)  # the attempt before may have ended when it was only made
            else:
                if present is not None:
                    self._set_aside(present)
                self._start_new(version, task)
        except TaskFailed:
            self._put_back(task)
            raise
        return (self._labels(self._before) or {}).get(_VERSION)

    def roll_back(self, version: str, previous: str | None) -> str | None:
        """Remove the container, and start the one before again."""
        present, before = self._labels(self.spec.container), self._labels(self._before)
        found = None if present is None else present.get(_VERSION)
        if found not in (version, previous, None):
            return found
        if before is not None or previous is None:
            _container("rm", "--force", self.spec.container, missing_is_fine=True)
        if before is not None:
            _container("rename", self._before, self.spec.container)
        if previous is not None:
            _container("start", self.spec.container)
            self.probe(previous)
        return previous

    def probe(self, version: str) -> str:
        """Wait until `/health` answers as the version."""
        wait_for_version(
            version,
            within_seconds=self.spec.within_seconds,
            health=lambda: ask_health(self.spec.port),
            runs=self._runs,
            log=self._log,
            every_seconds=_LOOK_SECONDS,
        )
        return f"http://127.0.0.1:{self.spec.port}"

    @property
    def _before(self) -> str:
        return f"{self.spec.container}-before"

    def _set_aside(self, labels: Mapping[str, str]) -> None:
        """Stop the present container and keep it under another name, in place of the one that was kept so far."""
        if _VERSION not in labels:
            fix = "remove it, or give the service another name"
            raise InputError("This container is none of the deployer's", container=self.spec.container, fix=fix)
        _container("rm", "--force", self._before, missing_is_fine=True)
        _container("stop", "-t", str(_STOP_SECONDS), self.spec.container)
        _container("rename", self.spec.container, self._before)

    def _put_back(self, task: str) -> None:
        """Remove the container of a release that failed, and start the one before again."""
        present = self._labels(self.spec.container)
        if present is None or present.get(_TASK) == task:
            _container("rm", "--force", self.spec.container, missing_is_fine=True)
            if self._labels(self._before) is None:
                return
            _container("rename", self._before, self.spec.container)
        _container("start", self.spec.container)

    def _start_new(self, version: str, task: str) -> None:
        spec = self.spec
        _container(
            "run", "--detach", "--name", spec.container, "--restart", "unless-stopped",
            "--label", f"{_VERSION}={version}", "--label", f"{_TASK}={task}",
            "--env", f"SERVICE_VERSION={version}", "--publish", f"127.0.0.1:{spec.port}:{spec.container_port}",
            f"{spec.image}:{version}",
        )  # fmt: skip

    def _labels(self, name: str) -> dict[str, str] | None:
        found = _container("container", "inspect", "--format", "{{json .Config.Labels}}", name, missing_is_fine=True)
        return None if found is None else (json.loads(found) or {})

    def _runs(self) -> bool:
        words = ("container", "inspect", "--format", "{{.State.Running}}", self.spec.container)
        return _container(*words, missing_is_fine=True) == "true"

    def _log(self) -> str:
        words = ("logs", "--tail", "20", self.spec.container)
        found = _container(*words, missing_is_fine=True, with_errors=True) or ""
        return found.strip()[-_TAIL_CHARACTERS:]


@dataclass(frozen=True, slots=True)
class KubernetesTarget:
    """A Deployment, by kubectl as it is set up for the agent's user."""

    spec: KubernetesSpec

    @property
    def name(self) -> str:
        """The lock's name, which the healer uses, too."""
        return f"service:deployment/{self.spec.namespace}/{self.spec.deployment}"

    def prepare(self, version: str, tree: Path) -> None:
        """Build and push the image, if that is wanted."""
        if self.spec.build:
            build_image(self._image(version), tree)
            _container("push", self._image(version), seconds=_BUILD_SECONDS)

    def release(self, version: str, tree: Path, task: str) -> str | None:
        """Give the Deployment the version's image, and note in the same request what it had before."""
        found, image = self._deployment(), self._image(version)
        annotations: Mapping[str, str] = found["metadata"].get("annotations", {})
        container = self._container(found)
        if annotations.get(_RELEASE) == task and container["image"] == image:
            return self._version(annotations[_PREVIOUS])
        notes = {
            _RELEASE: task,
            _PREVIOUS: container["image"],
            _REVISION: annotations.get("deployment.kubernetes.io/revision", "0"),
            "kubernetes.io/change-cause": f"released {version[:12]}",
        }
        pods = {"spec": {"containers": [{"name": container["name"], "image": image}]}}
        patch = {"metadata": {"annotations": notes}, "spec": {"template": pods}}
        self._kubectl("patch", "deployment", self.spec.deployment, "--patch", json.dumps(patch))
        return self._version(container["image"])

    def roll_back(self, version: str, previous: str | None) -> str | None:
        """Have Kubernetes undo the roll-out, back to the revision before the release, and wait for it."""
        found = self._deployment()
        present = self._version(self._container(found)["image"])
        if present == version != previous:
            revision = found["metadata"].get("annotations", {}).get(_REVISION, "0")  # 0 is the one before
            self._kubectl("rollout", "undo", self._named, f"--to-revision={revision}")
            present = self._present()
            if present == version:
                raise TaskFailed("The Deployment did not go back", version=version, previous=previous)
        if present == previous:
            self._await_rollout()
        return present

    def probe(self, version: str) -> str:
        """Wait until all pods of the Deployment are of the version and ready, by their own probes."""
        self._await_rollout()
        present = self._present()
        if present != version:
            raise TaskFailed("The Deployment has another version by now", version=version, present=present)
        return f"kubernetes:{self.spec.namespace}/{self.spec.deployment}"

    @property
    def _named(self) -> str:
        return f"deployment/{self.spec.deployment}"

    def _await_rollout(self) -> None:
        seconds = self.spec.within_seconds
        try:
            self._kubectl("rollout", "status", self._named, f"--timeout={seconds:g}s", seconds=seconds + 30)
        except TaskFailed as error:
            why = self._unready() or str(error.facts["output"])
            raise TaskFailed("The Deployment is not well", deployment=self.spec.deployment, why=why) from error

    def _unready(self) -> str:
        """Return why containers of the Deployment's pods wait or ended, and what the Deployment says itself."""
        found = self._deployment()
        wanted: Mapping[str, str] = found["spec"]["selector"].get("matchLabels", {})
        labels = ",".join(f"{name}={value}" for name, value in wanted.items())
        pods = json.loads(self._kubectl("get", "pods", "--selector", labels, "--output", "json"))["items"]
        states = [
            status.get("state", {}) for pod in pods for status in pod.get("status", {}).get("containerStatuses", [])
        ]
        reasons = [state.get("waiting") or state.get("terminated") for state in states]
        conditions = [
            condition
            for condition in found.get("status", {}).get("conditions", [])
            if (condition["status"] == "True") == (condition["type"] == "ReplicaFailure")
        ]
        said = [f"{item.get('reason', '')}: {item.get('message', '')}" for item in [*reasons, *conditions] if item]
        return "; ".join(dict.fromkeys(said))[:_TAIL_CHARACTERS]

    def _deployment(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._kubectl("get", "deployment", self.spec.deployment, "--output", "json"))
        return found

    def _container(self, deployment: Mapping[str, Any]) -> Mapping[str, Any]:
        containers: list[Mapping[str, Any]] = deployment["spec"]["template"]["spec"]["containers"]
        wanted = self.spec.container or containers[0]["name"]
        for container in containers:
            if container["name"] == wanted:
                return container
        names = [container["name"] for container in containers]
        raise InputError("The Deployment has no such container", container=wanted, fix=f"name one of {names}")

    def _image(self, version: str) -> str:
        return f"{self.spec.image}:{version}"

    def _present(self) -> str:
        return self._version(self._container(self._deployment())["image"])

    def _version(self, image: str) -> str:
        """Return the version of an image: its tag, or the whole name of an image that is not the service's own."""
        return image.removeprefix(f"{self.spec.image}:")

    def _kubectl(self, *words: str, seconds: float = _COMMAND_SECONDS) -> str:
        return _run(["kubectl", "--namespace", self.spec.namespace, *words], seconds=seconds)


def build_image(image: str, tree: Path) -> None:
    """Build an image by the Dockerfile or Containerfile in a folder, unless there is one of this name and tag.

    Raises:
        TaskFailed: it cannot be built.
        SetupError: not retryable; there is neither podman nor docker.
    """
    if _container("image", "inspect", "--format", "{{.Id}}", image, missing_is_fine=True) is not None:
        return
    files = [tree / name for name in ("Containerfile", "Dockerfile")]
    found = [file for file in files if file.is_file() and not file.is_symlink()]  # a link may lead out of the commit
    if not found:
        raise InputError("The commit has no Dockerfile, of which an image is built", fix="add one at its root, no link")
    _container("build", "--tag", image, "--file", str(found[0]), str(tree), seconds=_BUILD_SECONDS)


def _container(
    *words: str, seconds: float = _COMMAND_SECONDS, missing_is_fine: bool = False, with_errors: bool = False
) -> str | None:
    """Run podman or docker, and return what it prints; None for a failure, if what is missing is fine."""
    program = shutil.which("podman") or shutil.which("docker")
    if program is None:
        raise SetupError("There is neither podman nor docker", fix="install one, where the deployer may use it")
    try:
        return _run([program, *words], seconds=seconds, with_errors=with_errors)
    except TaskFailed as error:
        if missing_is_fine and _MISSING.search(str(error.facts["output"])):
            return None
        raise


def _run(command: Sequence[str], *, seconds: float, with_errors: bool = False) -> str:
    """Run a program without the agent's own settings, and return what it prints, `with_errors` also to stderr.

    Raises:
        TaskFailed: it fails, or does not end in time; with the end of its output.
        SetupError: not retryable; it is not installed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_")}
    facts = {"command": " ".join([Path(command[0]).name, *command[1:]])[:300]}
    try:
        ended = run_program(command, seconds=seconds, most_bytes=_MOST_OUTPUT, environment=environment)
    except FileNotFoundError as error:
        fix = "install it beside the deployer"
        raise SetupError("A program is missing", program=command[0], fix=fix) from error
    except subprocess.TimeoutExpired as error:
        raise TaskFailed("A program did not end in time", **facts, seconds=seconds, output="") from error
    printed = ended.output.decode(errors="replace").strip()
    if ended.code != 0:
        said = (ended.errors or printed)[-_TAIL_CHARACTERS:]
        raise TaskFailed("A program failed", **facts, exit_code=ended.code, output=said)
    return f"{printed}\n{ended.errors}" if with_errors else printed
