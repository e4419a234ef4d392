"""The folders that handlers and commands work in: private, swept after a killed agent, made again when they vanish."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coditect.agent.workspaces import WORKSPACE_PREFIX, Workspaces, remove_folder
from coditect.errors import SetupError

KILLED = """
import os, signal, sys
from coditect.agent.workspaces import Workspaces
folder = Workspaces(sys.argv[1]).make()
(folder / "file").touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "above" / "work"


def test_a_workspace_is_private_and_leaves_nothing(base: Path) -> None:
    workspaces = Workspaces(base)
    first, second = workspaces.make(), workspaces.make()
    assert {path.stat().st_mode & 0o777 for path in (first, first.parent, base, base.parent)} == {0o700}
    assert list(first.iterdir()) == [] and first.parent == second.parent

    workspaces.remove(first)
    workspaces.remove(second)
    assert list(base.iterdir()) == []


def test_workspaces_of_a_killed_process_are_removed_and_those_of_a_living_one_are_not(base: Path) -> None:
    living = Workspaces(base)
    folder = living.make()
    subprocess.run([sys.executable, "-c", KILLED, str(base)], check=False)
    (base / f"{WORKSPACE_PREFIX}unlocked").mkdir()
    (base / "foreign").mkdir()
    assert len(list(base.iterdir())) == 4

    Workspaces(base).sweep()
    assert {path.name for path in base.iterdir()} == {"foreign", folder.parent.name}


def test_no_workspace_is_lost_when_many_processes_open_and_sweep_at_once(base: Path) -> None:
    end = time.monotonic() + 0.5

    def open_and_sweep(_: int) -> int:
        opened = 0
        while time.monotonic() < end:
            workspaces = Workspaces(base)
            folder = workspaces.make()
            (folder / "file").touch()
            Workspaces(base).sweep()
            assert (folder / "file").exists(), "another process removed it"
            workspaces.remove(folder)
            opened += 1
        return opened

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(open_and_sweep, range(8))) > 8
    assert list(base.iterdir()) == []


@pytest.mark.parametrize(
    "vanish",
    [
        lambda folder: shutil.rmtree(folder.parent),
        lambda folder: shutil.rmtree(folder.parent.parent),
        lambda folder: (folder.parent / "lock").unlink(),
    ],
)
def test_a_folder_that_vanished_is_made_again(base: Path, vanish: Callable[[Path], object]) -> None:
    workspaces = Workspaces(base)
    first = workspaces.make()
    vanish(first)

    second = workspaces.make()
    Workspaces(base).sweep()
    assert second.exists()
    for folder in (first, second):
        workspaces.remove(folder)
    assert list(base.iterdir()) == []


def test_no_temporary_folder_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_usable() -> str:  # as on a full disk
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", none_usable)
    for use in (Workspaces().make, Workspaces().sweep):
        with pytest.raises(SetupError, match="No usable temporary directory") as raised:
            use()
        assert raised.value.retryable


def test_a_full_disk_is_an_error_that_another_attempt_may_not_meet(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr("os.mkdir", full)
    with pytest.raises(SetupError, match="No space left") as raised:
        Workspaces(base).make()
    assert raised.value.retryable


def _open_to_all(base: Path) -> None:
    base.mkdir(parents=True)
    base.chmod(0o777)


def _below_one_open_to_all(base: Path) -> None:
    _open_to_all(base.parent)


def _link_of_another_user(base: Path) -> None:
    base.parent.mkdir()
    target = base.parent.parent / "target"
    target.mkdir()
    base.symlink_to(target)
    os.chown(base, 12_345, 12_345, follow_symlinks=False)


def _of_another_user(base: Path) -> None:
    base.mkdir(parents=True)
    os.chown(base.parent, 12_345, 12_345)


@pytest.mark.parametrize("prepare", [_open_to_all, _below_one_open_to_all, _link_of_another_user, _of_another_user])
def test_a_folder_that_another_user_could_change_is_refused(base: Path, prepare: Callable[[Path], None]) -> None:
    if prepare in (_link_of_another_user, _of_another_user) and os.getuid():
        pytest.skip("only root can give a file away")
    prepare(base)
    workspaces = Workspaces(base)

    with pytest.raises(SetupError, match="CODITECT_WORKSPACE"):
        workspaces.make()
    with pytest.raises(SetupError, match="CODITECT_WORKSPACE"):
        workspaces.sweep()


def test_an_own_link_and_a_sticky_folder_are_used(base: Path) -> None:
    sticky = base.parent / "tmp"
    sticky.mkdir(parents=True)
    sticky.chmod(0o1777)
    base.symlink_to("tmp/../tmp/inner")

    folder = Workspaces(base).make()
    assert folder.resolve().is_relative_to(sticky / "inner")


def test_a_link_in_a_workspace_is_removed_and_its_target_stays_as_it_is(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.touch(0o640)
    inner = base / "inner"
    inner.mkdir(parents=True)
    (inner / "link").symlink_to(target)
    inner.chmod(0o500)
    mode = base.parent.stat().st_mode

    remove_folder(base)
    remove_folder(base)
    assert not base.exists() and target.stat().st_mode & 0o777 == 0o640
    assert base.parent.stat().st_mode == mode
