"""Releases to containers and to Kubernetes, by a fake docker and a fake kubectl on the PATH."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from agents.demo import deployment as shop
from agents.deployment import targets
from agents.deployment.targets import ContainerSpec, ContainerTarget, KubernetesSpec, KubernetesTarget, Target
from coditect.errors import InputError, SetupError, TaskFailed
from coditect.local.servers import free_ports

FIRST, SECOND, BROKEN = ("1" * 40, "2" * 40, "3" * 40)
Trees = dict[str, Path]
HERE = Path(__file__).parent


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the fake programs, which is all of the PATH; returns the folder of their state."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for name in ("docker", "kubectl"):
        program = binaries / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {HERE / f"fake_{name}.py"} "$@"\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setenv("FAKE_DOCKER", str(tmp_path / "docker"))
    monkeypatch.setenv("FAKE_KUBECTL", str(tmp_path / "cluster.json"))
    return tmp_path


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    """The files of three versions: two that are well, and one that dies at its start."""
    found = {}
    for version in (FIRST, SECOND, BROKEN):
        tree = tmp_path / "trees" / version
        tree.mkdir(parents=True)
        (tree / "Dockerfile").write_text("FROM python\n")
        for name, text in shop.files_of(shop.BROKEN if version == BROKEN else shop.GOOD).items():
            (tree / name).write_text(text)
        found[version] = tree
    return found


@pytest.fixture
def container(programs: Path) -> Iterator[ContainerTarget]:
    [port] = free_ports(1)
    target = ContainerTarget(ContainerSpec(container="shop", image="registry:5000/shop", port=port, within_seconds=20))
    yield target
    for name in ("shop", "shop-before"):
        targets._container("rm", "--force", name, missing_is_fine=True)


def released(target: Target, version: str, tree: Path, task: str) -> str | None:
    target.prepare(version, tree)
    return target.release(version, tree, task)


def names(programs: Path) -> set[str]:
    return {path.stem for path in (programs / "docker" / "containers").iterdir()}


def test_a_container_is_replaced_probed_and_put_back_as_it_was(
    container: ContainerTarget, trees: Trees, programs: Path
) -> None:
    before = released(container, FIRST, trees[FIRST], "task-1")
    container.probe(FIRST)
    second = released(container, SECOND, trees[SECOND], "task-2")
    url = container.probe(SECOND)
    third = released(container, BROKEN, trees[BROKEN], "task-3")
    with pytest.raises(TaskFailed, match="SHOP_CURRENCY"):
        container.probe(BROKEN)
    undone = [container.roll_back(BROKEN, SECOND) for _ in range(2)]

    assert (before, second, third, undone) == (None, FIRST, SECOND, [SECOND, SECOND])
    assert url == f"http://127.0.0.1:{container.spec.port}"
    assert names(programs) == {"shop"}
    assert container.probe(SECOND) == url


def test_a_container_without_one_before_is_removed_and_a_later_version_is_left_alone(
    container: ContainerTarget, trees: Trees, programs: Path
) -> None:
    released(container, FIRST, trees[FIRST], "task-1")
    late = container.roll_back(SECOND, None)
    undone = [container.roll_back(FIRST, None) for _ in range(2)]

    assert (late, undone, names(programs)) == (FIRST, [None, None], set())


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_release_and_its_undoing_that_were_killed_anywhere_are_done_by_the_next_attempts(
    container: ContainerTarget, trees: Trees, programs: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    released(container, FIRST, trees[FIRST], "task-1")
    killed = _killed(at, monkeypatch, lambda: released(container, SECOND, trees[SECOND], "task-2"))
    again = released(container, SECOND, trees[SECOND], "task-2")
    container.probe(SECOND)
    killed_too = _killed(at, monkeypatch, lambda: container.roll_back(SECOND, FIRST))
    undone = container.roll_back(SECOND, FIRST)

    assert (killed, killed_too) == (True, at < 3)
    assert (again, undone, names(programs)) == (FIRST, FIRST, {"shop"})


def _killed(at: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> bool:
    """Have a process die at the given change of a container, and tell whether it did."""
    changes, run = count(), targets._run

    def dying(command: list[str], **options: Any) -> str:
        if command[1] in ("rm", "stop", "rename", "run", "start") and next(changes) == at:
            raise KeyboardInterrupt
        return run(command, **options)

    with monkeypatch.context() as patched:
        patched.setattr(targets, "_run", dying)
        try:
            action()
        except KeyboardInterrupt:
            return True
    return False


def test_a_container_that_fails_leaves_the_one_before(container: ContainerTarget, trees: Trees, programs: Path) -> None:
    """The workflow undoes what has completed: nobody else brings the service back."""
    (trees[SECOND] / "refuse").touch()
    with pytest.raises(TaskFailed, match="not found"):
        released(container, SECOND, trees[SECOND], "task-0")
    none = names(programs)
    released(container, FIRST, trees[FIRST], "task-1")
    for _ in range(2):
        with pytest.raises(TaskFailed, match="not found"):
            released(container, SECOND, trees[SECOND], "task-2")

    assert (none, names(programs)) == (set(), {"shop"})
    assert container.probe(FIRST)


def test_a_docker_that_does_not_answer_is_no_missing_container(container: ContainerTarget, programs: Path) -> None:
    (programs / "bin" / "docker").write_text("#!/bin/sh\necho 'dial tcp: lookup far: no such host' >&2\nexit 1\n")
    with pytest.raises(TaskFailed, match="no such host"):
        container.roll_back(FIRST, None)
    (programs / "bin" / "docker").write_text("#!/bin/sh\necho 'No such container: shop' >&2\nexit 1\n")


def test_a_container_of_others_is_not_touched(container: ContainerTarget, trees: Trees, programs: Path) -> None:
    released(container, FIRST, trees[FIRST], "task-1")
    file = programs / "docker" / "containers" / "shop.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"labels": {}}))

    with pytest.raises(InputError, match="none of the deployer's"):
        released(container, SECOND, trees[SECOND], "task-2")

    assert names(programs) == {"shop"}


def test_a_commit_without_a_dockerfile_and_a_machine_without_docker_say_what_is_missing(
    container: ContainerTarget, trees: Trees, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (trees[FIRST] / "Dockerfile").unlink()
    with pytest.raises(InputError, match="Dockerfile"):
        released(container, FIRST, trees[FIRST], "task-1")
    (trees[FIRST] / "Dockerfile").symlink_to("/proc/self/environ")
    with pytest.raises(InputError, match="Dockerfile"):
        released(container, FIRST, trees[FIRST], "task-1")
    with monkeypatch.context() as empty:
        empty.setenv("PATH", str(programs / "empty"))
        with pytest.raises(SetupError, match="podman"):
            released(container, FIRST, trees[FIRST], "task-1")
        with pytest.raises(SetupError, match="kubectl"):
            KubernetesTarget(KubernetesSpec(deployment="shop", image="shop")).release(FIRST, trees[FIRST], "task-1")


def test_programs_get_no_setting_of_the_agent_and_of_much_output_the_end_is_kept(
    container: ContainerTarget, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODITECT_GIT_TOKEN", "a-secret-token")
    (programs / "bin" / "docker").write_text("#!/bin/sh\nset\n")

    assert "a-secret-token" not in str(targets._container("version"))
    assert os.environ["FAKE_DOCKER"] in str(targets._container("version"))

    monkeypatch.setattr(targets, "_MOST_OUTPUT", 10)
    (programs / "bin" / "docker").write_text("#!/bin/sh\necho 0123456789 and the end\n")

    assert targets._container("version") == "d the end"


@pytest.fixture
def deployment(programs: Path) -> KubernetesTarget:
    containers = [{"name": "proxy", "image": "envoy:1"}, {"name": "shop", "image": "registry/shop:old"}]
    metadata = {"name": "shop", "namespace": "live", "annotations": {"deployment.kubernetes.io/revision": "1"}}
    spec = {"selector": {"matchLabels": {"app": "shop"}}, "template": {"spec": {"containers": containers}}}
    cluster = {"bad": [], "asked": [], "history": [containers], "deployment": {"metadata": metadata, "spec": spec}}
    (programs / "cluster.json").write_text(json.dumps(cluster))
    return KubernetesTarget(
        KubernetesSpec(deployment="shop", namespace="live", image="registry/shop", container="shop", within_seconds=5)
    )


def cluster(programs: Path) -> Any:
    return json.loads((programs / "cluster.json").read_text())


def break_image(programs: Path, image: str) -> None:
    (programs / "cluster.json").write_text(json.dumps(cluster(programs) | {"bad": [image]}))


def images(programs: Path) -> list[str]:
    found = cluster(programs)["deployment"]["spec"]["template"]["spec"]["containers"]
    return [container["image"] for container in found]


def test_a_deployment_is_rolled_out_and_undone(deployment: KubernetesTarget, trees: Trees, programs: Path) -> None:
    releases = [released(deployment, FIRST, trees[FIRST], "task-1") for _ in range(2)]
    place = deployment.probe(FIRST)
    broken = released(deployment, BROKEN, trees[BROKEN], "task-2")
    break_image(programs, f"registry/shop:{BROKEN}")
    with pytest.raises(TaskFailed, match="ImagePullBackOff: Back-off pulling"):
        deployment.probe(BROKEN)
    undone = [deployment.roll_back(BROKEN, FIRST) for _ in range(2)]
    late = deployment.roll_back(SECOND, "old")

    asked = cluster(programs)["asked"]
    assert (releases, broken) == (["old", "old"], FIRST)
    assert (undone, late) == ([FIRST, FIRST], FIRST)
    assert place == "kubernetes:live/shop"
    assert images(programs) == ["envoy:1", f"registry/shop:{FIRST}"]
    assert [words for words in asked if "undo" in words] == [["rollout", "undo", "deployment/shop", "--to-revision=2"]]
    assert sum("patch" in words for words in asked) == 2


def test_a_release_that_was_undone_is_done_anew_and_a_roll_back_without_effect_fails(
    deployment: KubernetesTarget, trees: Trees, programs: Path
) -> None:
    previous = released(deployment, FIRST, trees[FIRST], "task-1")
    deployment.roll_back(FIRST, previous)
    again = released(deployment, FIRST, trees[FIRST], "task-1")

    assert (previous, again, images(programs)[1]) == ("old", "old", f"registry/shop:{FIRST}")

    previous = released(deployment, FIRST, trees[FIRST], "task-1")
    (programs / "cluster.json").write_text(json.dumps(cluster(programs) | {"skips": True}))

    with pytest.raises(TaskFailed, match="did not go back"):
        deployment.roll_back(FIRST, previous)


def test_a_deployment_goes_back_to_another_image(deployment: KubernetesTarget, trees: Trees, programs: Path) -> None:
    target = KubernetesTarget(deployment.spec.model_copy(update={"image": "other/shop"}))
    previous = released(target, FIRST, trees[FIRST], "task-1")
    target.roll_back(FIRST, previous)

    assert previous == "registry/shop:old"
    assert images(programs) == ["envoy:1", "registry/shop:old"]


def test_a_version_that_others_replaced_is_not_well(deployment: KubernetesTarget, trees: Trees) -> None:
    released(deployment, SECOND, trees[SECOND], "task-1")

    with pytest.raises(TaskFailed, match="another version"):
        deployment.probe(FIRST)


def test_an_image_is_built_and_pushed_first(deployment: KubernetesTarget, trees: Trees, programs: Path) -> None:
    target = KubernetesTarget(deployment.spec.model_copy(update={"build": True}))
    for _ in range(2):
        released(target, FIRST, trees[FIRST], "task-1")

    assert [path.name for path in (programs / "docker" / "registry").iterdir()] == [f"registry_shop:{FIRST}"]
    assert (programs / "docker" / "asked").read_text().count("build") == 1
    assert images(programs)[1] == f"registry/shop:{FIRST}"


@pytest.mark.parametrize(
    ("update", "said"), [({"container": "none"}, "no such container"), ({"namespace": "other"}, "NotFound")]
)
def test_what_the_cluster_does_not_have_is_named(
    deployment: KubernetesTarget, trees: Trees, update: dict[str, str], said: str
) -> None:
    target = KubernetesTarget(deployment.spec.model_copy(update=update))

    with pytest.raises((InputError, TaskFailed), match=said):
        released(target, FIRST, trees[FIRST], "task-1")
