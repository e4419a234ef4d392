"""A git repository on the agent's machine: what a branch changes, and fresh worktrees of a commit."""

from __future__ import annotations

import fcntl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coditect.errors import InputError, SetupError

_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
"""Options with which git runs no hook and no file system monitor of the repository."""
_WITHIN_SECONDS = 60
MOST_DIFF_BYTES = 500_000
_EVERYTHING = ("--no-ext-diff", "--no-textconv", "--text", "--no-color")
"""A diff has all lines, whatever attributes of the files say: `-diff` would keep them from review and policy."""


def commit_of(repository: Path, revision: str) -> str:
    """Return the hash of the commit that a branch, tag or hash names.

    Raises:
        InputError: not retryable; the repository has no such revision.
    """
    found = _run(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.returncode != 0:
        fix = "name a git repository, and a branch that it has"
        raise InputError("there is no such revision", repository=str(repository), revision=revision[:200], fix=fix)
    return found.stdout.decode().strip()


def diff_of(repository: Path, base: str, commit: str) -> str:
    """Return what a commit changed since it left its base, as a unified diff.

    Raises:
        InputError: not retryable; the two have no common ancestor, nothing changed, or too much.
    """
    found = _run(repository, "diff", *_EVERYTHING, f"{base}...{commit}", "--")
    text = found.stdout.decode(errors="replace")
    if found.returncode != 0 or not 0 < len(text) <= MOST_DIFF_BYTES:
        reason = found.stderr.decode(errors="replace").strip()[:300]
        fix = "give a branch with changes of at most 500 kB since its base"
        raise InputError("there is no diff to review", characters=len(text), reason=reason, fix=fix)
    return text


@contextmanager
def worktree(repository: Path, commit: str, name: str) -> Iterator[Path]:
    """Check a commit out into a fresh folder beside the repository while the block runs.

    A folder of the same name, which a killed attempt left, is replaced.

    Raises:
        InputError: not retryable; git cannot check the commit out.
    """
    tree = repository.resolve().with_name(f"{repository.resolve().name}.worktrees") / name
    tree.parent.mkdir(exist_ok=True)
    try:
        with _alone(tree.parent):
            _remove(repository, tree)
            added = _run(repository, "worktree", "add", "--detach", "--force", str(tree), commit)
        if added.returncode != 0:
            reason = added.stderr.decode(errors="replace").strip()[:300]
            raise InputError("git cannot check the commit out", commit=commit, reason=reason, fix="fetch the commit")
        yield tree
    finally:
        with _alone(tree.parent):
            _remove(repository, tree)


@contextmanager
def _alone(trees: Path) -> Iterator[None]:
    """Let only one process make or remove worktrees of the repository: git removes what another git is making."""
    with (trees / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(repository: Path, tree: Path) -> None:
    _run(repository, "worktree", "remove", "--force", "--force", str(tree))
    _run(repository, "worktree", "prune")


def _run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run git in a repository, and return its exit code, which the caller must check, and its output.

    Raises:
        SetupError: not retryable; git is not installed.
    """
    try:
        return subprocess.run(
            ["git", *_QUIET, "-C", str(repository), *arguments],
            capture_output=True,
            check=False,
            timeout=_WITHIN_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise SetupError("git is missing; install it beside the agent") from error
