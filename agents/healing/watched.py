"""A service as its operator names it: of one of three kinds, with the signs by which it is unwell.

=============  ==================================================  ==============================================
kind           how it is looked at                                 how it is mended
=============  ==================================================  ==============================================
`folder`       its process, port, files, memory, disk (evidence)   by the remedy of the cause (remedies)
`command`      `COMMAND status` exits with 0                       `COMMAND start`, or `stop` and `start`
`deployment`   a Deployment and its pods, by `kubectl`             `kubectl rollout undo` or `restart`, `scale`
=============  ==================================================  ==============================================
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from agents.deployment.service import Service, outliving
from agents.healing.diagnosis import Bounds, Cause, ServiceEvidence, Symptom, examine, glance, remedy, symptoms
from agents.healing.signs import LogReader, LogSign, Sign
from agents.tester import STARTED_BY
from agents.tools.child import Ended, run_program
from agents.tools.sources import confined
from coditect.errors import InputError

_MANAGERS = frozenset({"systemctl", "service", "rc-service"})
_UNIT = re.compile(r"--user|[A-Za-z0-9_@][A-Za-z0-9_@.:\\-]*")
_REVISION = "deployment.kubernetes.io/revision"
_COMMAND_SECONDS = 60
_MOST_OUTPUT = 16_777_216
_WAITING_BADLY = (
    "CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "ErrImagePull", "ImagePullBackOff",
    "InvalidImageName", "RunContainerError",
)  # fmt: skip
"""The reasons for which a pod of a new revision waits that no waiting mends."""


class Kind(ABC):
    """A kind of service: how the healer looks at it and mends it; all methods block."""

    patience_seconds: ClassVar[float]
    """How long a mended service may take until it is well."""
    every_seconds: ClassVar[float] = 1.0
    """The seconds between two looks, if the operator gives none."""
    waits_when_gone: ClassVar[bool] = True
    """True when a service that does not run may start by itself, so that the healer waits first."""

    @property
    @abstractmethod
    def lock(self) -> str:
        """The name of the lock that every change of the service takes, also a release."""

    @abstractmethod
    def glance(self) -> ServiceEvidence:
        """Return the evidence that one quick look gives."""

    def examine(self) -> ServiceEvidence:
        """Return all the evidence; by default what `glance` gives."""
        return self.glance()

    @abstractmethod
    def remedy(self, cause: Cause) -> str:
        """Remove a cause, and return in words what was done; idempotent."""


class Watched(BaseModel):
    """A service to watch and to heal. A text alone is the folder of a service."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, json_schema_extra={"examples": [{"name": "shop", "folder": "shop"}]}
    )

    name: str = Field(min_length=1, max_length=200, description="the name by which people know it")
    folder: str | None = Field(None, min_length=1, description="its folder on the agent's machine")
    command: str | None = Field(
        None, min_length=1, description="a program that takes start, stop and status: systemctl UNIT, or a file"
    )
    deployment: str | None = Field(None, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)
    namespace: str = Field("default", pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", max_length=63)
    context: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9@:/._-]*$", description="of kubectl")
    signs: list[Sign] = Field([], max_length=20, description="what is wrong when it is unwell, beside its kind's own")
    every_seconds: float | None = Field(
        None, ge=0.1, le=3_600, description="how often it is looked at; default: 1 s, of a Deployment 5 s"
    )

    @model_validator(mode="before")
    @classmethod
    def _of_folder(cls, value: object) -> object:
        return {"name": value, "folder": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_one_kind(self) -> Watched:
        if sum(kind is not None for kind in (self.folder, self.command, self.deployment)) != 1:
            raise ValueError("a service has one of `folder`, `command` and `deployment`")
        return self

    @cached_property
    def kind(self) -> Kind:
        """The watched service, by the interface of its kind.

        Raises:
            InputError: not retryable; its folder or its command lies outside the fleet's folder.
        """
        if self.folder is not None:
            return FolderKind(Service(Path(confined(self.folder))))
        if self.command is not None:
            return CommandKind(self.command)
        return DeploymentKind(str(self.deployment), self.namespace, self.context)

    def readers(self, offsets: Mapping[str, int] | None) -> list[LogReader]:
        """Return a reader for each log sign, from the sign's offset of those given, or else from the log's end."""
        logs = [sign for sign in self.signs if isinstance(sign, LogSign)]
        known = offsets or {}
        return [LogReader(log, known[log.key]) if log.key in known else LogReader.at_end(log) for log in logs]

    def named(self, readers: Sequence[LogReader], *, probes: bool = True) -> list[str]:
        """Return what is wrong by the signs that the operator named; takes as long as they take to answer.

        Without `probes` no request is sent, and the logs alone count.
        """
        others = [sign for sign in self.signs if not isinstance(sign, LogSign)] if probes else []
        return [trouble for sign in (*others, *readers) if (trouble := sign.trouble())]


@dataclass(frozen=True, slots=True)
class FolderKind(Kind):
    """A service in a folder of the agent's machine; the agent starts its process itself."""

    patience_seconds = 5.0
    waits_when_gone = False
    service: Service

    @property
    def lock(self) -> str:
        """The lock that a release takes too."""
        return f"service:{self.service.folder.resolve()}"

    def glance(self) -> ServiceEvidence:
        """Return all the evidence but the configuration's check and the growth of the log."""
        return glance(self.service)

    def examine(self) -> ServiceEvidence:
        """Return all the evidence; takes at least 0.2 s."""
        return examine(self.service)

    def remedy(self, cause: Cause) -> str:
        """Apply the remedy of the cause."""
        if cause is Cause.RELEASE and Symptom.WORSE not in symptoms(glance(self.service), Bounds()):
            return "nothing: its version does not answer with errors"  # a second remedy would go back too far
        return remedy(self.service, cause)


@dataclass(frozen=True, slots=True)
class CommandKind(Kind):
    """A service that a program starts, stops and knows the status of, as `systemctl` or an init script does."""

    patience_seconds = 15.0
    command: str

    @property
    def lock(self) -> str:
        """The lock of the command."""
        return f"service:{self.command}"

    def glance(self) -> ServiceEvidence:
        """Return whether it runs, and the last line of what its status says."""
        ended, said = self._run("status")
        return ServiceEvidence(running=ended == 0, log=said)

    def remedy(self, cause: Cause) -> str:
        """Start it if it does not run; else stop and start it."""
        if cause is Cause.NONE:
            return "nothing: no cause was found"
        runs = self.glance().running
        if runs and cause is Cause.KILLED:
            return "nothing: it runs"
        if runs:
            self._run("stop")
        ended, said = self._run("start")
        done = "restarted it" if runs else "started it"
        return done if ended == 0 else f"{done}, in vain: exit {ended}: {said}"

    def _run(self, verb: str) -> tuple[int, str]:
        """Run the command with a verb, and return its exit code and the last line that it wrote."""
        try:
            # what a status leaves behind would be one process more with every look; a start leaves the service
            ended = _run(self._program(verb), together=True, leaves=verb == "start")
        except subprocess.TimeoutExpired:
            return -1, f"it did not end within {_COMMAND_SECONDS} s"
        return ended.code, _last_line(ended.output.decode(errors="replace"))

    def _program(self, verb: str) -> Sequence[str]:
        try:
            program, *arguments = shlex.split(self.command)
        except ValueError as error:
            fix = "close its quotes, and name a program"
            raise InputError("this is no command", command=self.command[:200], fix=fix) from error
        if program not in _MANAGERS and not arguments:
            return [str(Path(confined(program)).resolve()), verb]
        if program not in _MANAGERS or not arguments or not all(_UNIT.fullmatch(word) for word in arguments):
            fix = "write `systemctl UNIT` or `service NAME`, or a program of its own, without arguments"
            raise InputError("this is no service of a service manager", command=self.command[:200], fix=fix)
        if program != "systemctl":
            return [program, *arguments, verb]
        # no other kind of unit: to start `reboot.target` is to reboot
        units = (word if word == "--user" else f"{word.removesuffix('.service')}.service" for word in arguments)
        return [program, verb, *units]


@dataclass(frozen=True, slots=True)
class DeploymentKind(Kind):
    """A Deployment of Kubernetes, by the `kubectl` and the rights that the agent has."""

    patience_seconds = 60.0
    every_seconds = 5.0
    name: str
    namespace: str
    context: str | None = None

    @property
    def lock(self) -> str:
        """The lock that a release takes too."""
        return f"service:deployment/{self.namespace}/{self.name}"

    def glance(self) -> ServiceEvidence:
        """Return whether it has pods that are available, and why a new revision does not get any."""
        return self._look()[0]

    def examine(self) -> ServiceEvidence:
        """Return the same, and that a rollout goes on, which is no trouble to a watch."""
        found, settled = self._look()
        return found if settled else found.model_copy(update={"health": f"its rollout is not complete: {found.log}"})

    def _look(self) -> tuple[ServiceEvidence, bool]:
        """Return the evidence, and whether no rollout goes on."""
        found = json.loads(self._kubectl("get", "deployment", self.name, "--output", "json"))
        about, status, wanted = found["metadata"], found.get("status", {}), found["spec"].get("replicas", 1)
        progress: dict[str, Any] = next(
            (condition for condition in status.get("conditions", ()) if condition["type"] == "Progressing"), {}
        )
        current = status.get("observedGeneration", 0) >= about.get("generation", 0)
        complete = current and progress.get("reason") == "NewReplicaSetAvailable"
        available = status.get("availableReplicas", 0)
        failed = progress.get("message", "it is stuck") if current and progress.get("status") == "False" else ""
        revision = about.get("annotations", {}).get(_REVISION)
        waits = "" if complete or not current else self._bad_wait(found["spec"]["selector"], revision)
        evidence_ = ServiceEvidence(
            running=available > 0 or (wanted > 0 and not complete),
            version=revision,
            configuration=waits or failed,
            log=f"{available} of {wanted} pods are available",
        )
        return evidence_, complete

    def remedy(self, cause: Cause) -> str:
        """Go back to the revision before; or scale it up from zero; or restart its pods, one after the other."""
        if cause is Cause.NONE:
            return "nothing: no cause was found"
        if cause is Cause.CONFIGURATION:
            if not self.glance().configuration:
                return "nothing: no rollout fails"  # a second undo would bring the bad revision back
            try:
                self._kubectl("rollout", "undo", f"deployment/{self.name}")
            except OSError as error:
                if "revision" in str(error) or "history" in str(error):
                    return "nothing: there is no revision to go back to"
                raise
            return "went back to the revision before"
        found = json.loads(self._kubectl("get", "deployment", self.name, "--output", "json"))
        if found["spec"].get("replicas", 1) == 0:
            self._kubectl("scale", f"deployment/{self.name}", "--replicas=1")
            return "scaled it to one pod"
        self._kubectl("rollout", "restart", f"deployment/{self.name}")
        return "restarted its pods"

    def _bad_wait(self, selector: Mapping[str, Any], revision: str | None) -> str:
        """Return for which bad reason a pod of the revision waits; empty if none does. Pods of others may still end."""
        labels = ",".join(f"{key}={value}" for key, value in selector.get("matchLabels", {}).items())
        if not labels:
            return ""
        found = json.loads(self._kubectl("get", "replicasets,pods", "--selector", labels, "--output", "json"))["items"]
        about = [item["metadata"] for item in found if item["kind"] == "ReplicaSet"]
        hashes = {
            metadata["labels"].get("pod-template-hash")
            for metadata in about
            if metadata.get("annotations", {}).get(_REVISION) == revision
        }
        for pod in found:
            if pod["kind"] != "Pod" or pod["metadata"]["labels"].get("pod-template-hash") not in hashes:
                continue
            status = pod.get("status", {})
            for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
                waiting = container.get("state", {}).get("waiting", {})
                if waiting.get("reason") in _WAITING_BADLY:
                    return f"pod {pod['metadata']['name']} waits: {waiting['reason']}"
        return ""

    def _kubectl(self, *arguments: str) -> str:
        """Run `kubectl`, and return what it wrote to stdout.

        Raises:
            InputError: not retryable; there is no such Deployment.
            OSError: retryable; kubectl is not installed, or the API server does not answer.
        """
        where = ["--namespace", self.namespace, *(["--context", self.context] if self.context else [])]
        ended = _run(["kubectl", *arguments, *where])
        if ended.code == 0:
            return ended.output.decode(errors="replace")
        reason = _last_line(ended.errors)
        if "NotFound" in reason:
            fix = "see `kubectl get deployments`"
            raise InputError("there is no such Deployment", name=self.name, namespace=self.namespace, fix=fix)
        raise OSError(f"kubectl {arguments[0]}: exit {ended.code}: {reason}")


def _run(words: Sequence[str], *, together: bool = False, leaves: bool = False) -> Ended:
    """Run a program without Coditect's secrets; what it starts may outlive the agent.

    Raises:
        InputError: not retryable; it cannot be run.
        TimeoutExpired: it did not end within a minute, and was killed, with what it started if it `leaves` nothing.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("CODITECT_") or name == STARTED_BY}
    try:
        return run_program(
            words,
            seconds=_COMMAND_SECONDS,
            most_bytes=_MOST_OUTPUT,
            environment=outliving(own),
            together=together,
            leaves=leaves,
        )
    except OSError as error:
        fix = "install it where the agent runs, or make the file executable"
        raise InputError("this program cannot be run", program=words[0], reason=str(error), fix=fix) from error


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:300]
