"""The folders in which commands work: one for each attempt, fresh or a git worktree, removed at its end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coditect.agent.workspaces import Workspaces
from coditect.errors import InputError
from coditect.integrations.commands.failures import CommandMissing, CommandTroubled

GIT_SECONDS = 120.0
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
"""Options of git by which a checkout runs no hook and no file system monitor of the repository."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A git worktree to work in: the repository's folder, and what to check out."""

    repository: Path
    revision: str
    """A branch, tag or commit; it is not trusted, since it may come from a task's input."""


class CommandWorkspaces:
    """The folders in which the commands of one agent process work, one for each attempt."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    @contextmanager
    def one(self, checkout: Checkout | None) -> Iterator[Path]:
        """Make a folder, or a worktree with a detached head, and remove it when the block ends. Blocks its thread.

        Raises:
            InputError: when the repository has no such revision.
            CommandMissing: when there is no git, or no such repository, on this machine; retryable.
            CommandTroubled: when git cannot make the worktree now; retryable.
            WorkspaceUnusable: when there can be no folder, or another user could change it; retryable.
        """
        folder = self._workspaces.make()
        try:
            if checkout is None:
                yield folder
            else:
                with _worktree(checkout, folder / "tree") as tree:
                    yield tree
        finally:
            self._workspaces.remove(folder)


@contextmanager
def open_workspaces(base: Path | None, repositories: tuple[Path, ...]) -> Iterator[CommandWorkspaces]:
    """Yield an agent process's folders below `base`, after removing the folders and worktrees of ended processes.

    Raises:
        WorkspaceUnusable: when `base` cannot be used.
    """
    workspaces = Workspaces(base)
    workspaces.sweep()
    for repository in repositories:
        with suppress(CommandMissing, CommandTroubled):  # the first task that needs the repository reports it
            _git(repository, "worktree", "prune")
    try:
        yield CommandWorkspaces(workspaces)
    finally:
        workspaces.close()


@contextmanager
def _worktree(checkout: Checkout, tree: Path) -> Iterator[Path]:
    """Check a revision out into a worktree, removed after the block; `git worktree add` gets a hash, not the input."""
    found = _git(
        checkout.repository, "rev-parse", "--verify", "--quiet", "--end-of-options", _commit(checkout.revision)
    )
    if found.returncode != 0:
        if (asked := _git(checkout.repository, "rev-parse", "--git-dir")).returncode != 0:
            reason, fix = asked.stderr.decode(errors="replace")[-500:], "name the folder of a repository of this user"
            raise CommandMissing(
                "This is no git repository", repository=str(checkout.repository), reason=reason, fix=fix
            )
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
        raise CommandMissing("There is no git on this machine", fix="install git, or leave `repository` out") from error
    except subprocess.TimeoutExpired as error:
        raise CommandTroubled("Git did not answer in time", seconds=GIT_SECONDS) from error
