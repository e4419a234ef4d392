"""The folders in which commands work: one for each attempt, fresh or a git worktree, removed at its end.

All folders of an agent process lie in one of its own, which has a locked file. The lock ends with the process, also by
SIGKILL: whichever process of the user starts next under the same root removes the folders whose lock no process holds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coditect.errors import InputError, SetupError
from coditect.integrations.commands.failures import CommandTroubled

log = logging.getLogger(__name__)

GIT_SECONDS = 120.0
_LOCK = "lock"
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
"""Options of git by which a checkout runs no hook and no file system monitor of the repository."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A git worktree to work in: the repository's folder, and what to check out."""

    repository: Path
    revision: str
    """A branch, tag or commit; it is not trusted, since it may come from a task's input."""


class Workspaces:
    """The folders in which the commands of one agent process work, one for each attempt."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def one(self, checkout: Checkout | None) -> Iterator[Path]:
        """Make a folder, or a worktree with a detached head, and remove it when the block ends. Blocks its thread.

        Raises:
            InputError: when the repository has no such revision.
            SetupError: when there is no git, or no such repository.
            CommandTroubled: when git cannot make the worktree now; retryable.
        """
        folder = Path(tempfile.mkdtemp(prefix="task-", dir=self._folder))
        try:
            if checkout is None:
                yield folder
            else:
                with _worktree(checkout, folder / "tree") as tree:
                    yield tree
        finally:
            _remove(folder)


@contextmanager
def open_workspaces(root: Path, repositories: tuple[Path, ...]) -> Iterator[Workspaces]:
    """Make an agent process's folder below a root, for the block; first remove what ended processes left there.

    Raises:
        SetupError: when the root cannot be used.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise SetupError("The folder for workspaces belongs to another user", folder=str(root), fix=_ANOTHER)
        if _sweep(root):
            for repository in repositories:
                _git(repository, "worktree", "prune")
        folder = Path(tempfile.mkdtemp(prefix="agent-", dir=root))
        lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError as error:
        raise SetupError("The folder for workspaces cannot be used", reason=str(error), fix=_ANOTHER) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Workspaces(folder)
    finally:
        _remove(folder)
        os.close(lock)


_ANOTHER = "set CODITECT_WORKSPACE to a folder of your own"


def _sweep(root: Path) -> int:
    """Remove the folders of processes that have ended; return their number."""
    swept = 0
    for folder in root.glob("agent-*"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            continue  # another process makes it, or removes it, just now
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            _remove(folder)
            swept += 1
        finally:
            os.close(lock)
    if swept:
        log.info("Workspaces of ended agents are removed", extra={"folder": str(root), "number": swept})
    return swept


def _remove(folder: Path) -> None:
    """Remove a folder, even if its permissions forbid it; what cannot be removed is logged, and stays."""

    def again(_call: Callable[..., Any], path: str, _error: Any) -> None:
        try:
            Path(path).parent.chmod(0o700)
            Path(path).chmod(0o700)
            shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("A workspace could not be removed", extra={"folder": path, "reason": str(error)})

    shutil.rmtree(folder, onerror=again)


@contextmanager
def _worktree(checkout: Checkout, tree: Path) -> Iterator[Path]:
    """Check a revision out into a worktree, removed after the block; `git worktree add` gets a hash, not the input."""
    found = _git(
        checkout.repository, "rev-parse", "--verify", "--quiet", "--end-of-options", _commit(checkout.revision)
    )
    if found.returncode != 0:
        if _git(checkout.repository, "rev-parse", "--git-dir").returncode != 0:
            raise SetupError("This is no git repository", repository=str(checkout.repository), fix="name its folder")
        raise InputError("The repository has no such revision", revision=checkout.revision[:200], fix="push it first")
    commit = found.stdout.decode().strip()
    added = _git(checkout.repository, "worktree", "add", "--detach", "--force", str(tree), commit)
    try:
        if added.returncode != 0:
            reason = added.stderr.decode(errors="replace")[-500:]
            raise CommandTroubled("Git cannot make the worktree", repository=str(checkout.repository), reason=reason)
        yield tree
    finally:
        _git(checkout.repository, "worktree", "remove", "--force", "--force", str(tree))


def _commit(revision: str) -> str:
    if "\0" in revision or not revision:
        raise InputError("A revision is a branch, tag or commit", revision=revision[:200], fix="such as main")
    return revision + "^{commit}"


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("GIT_", "CODITECT_"))}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        return subprocess.run(
            ["git", *_QUIET, "-C", str(repository), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise SetupError("There is no git on this machine", fix="install git, or leave `repository` out") from error
    except subprocess.TimeoutExpired as error:
        raise CommandTroubled("Git did not answer in time", seconds=GIT_SECONDS) from error
