"""A git repository on the agent's machine: fetch it, read what a branch changes, and check commits out."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from agents.tester import clean_environment
from agents.tools.child import Ended, run_program
from coditect.errors import InputError, Retryable, SetupError

_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
"""Options with which git runs no hook and no file system monitor of the repository."""
_WITHIN_SECONDS = 60
_FETCH_SECONDS = 300
MOST_DIFF_BYTES = 500_000
_WITHOUT_LFS = {"filter.lfs.process": "", "filter.lfs.smudge": "", "filter.lfs.required": "false"}
_EVERYTHING = ("--no-ext-diff", "--no-textconv", "--text", "--no-color")
"""A diff has all lines, whatever attributes of the files say: `-diff` would keep them from review and policy."""


def commit_of(repository: Path, revision: str) -> str:
    """Return the hash of the commit that a branch, tag or hash names.

    Raises:
        InputError: not retryable; the repository has no such revision.
    """
    found = _run(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    if found.code != 0:
        fix = "name a git repository, and a branch that it has"
        raise InputError("there is no such revision", repository=str(repository), revision=revision[:200], fix=fix)
    return found.output.decode().strip()


def diff_of(repository: Path, base: str, commit: str) -> str:
    """Return what a commit changed since it left its base, as a unified diff.

    Raises:
        InputError: not retryable; the two have no common ancestor, nothing changed, or too much.
    """
    found = _run(repository, "diff", *_EVERYTHING, f"{base}...{commit}", "--")
    if found.code != 0 or not 0 < len(found.output) <= MOST_DIFF_BYTES:
        fix = "give a branch with changes of at most 500 kB since its base"
        raise InputError("there is no diff to review", bytes=len(found.output), reason=found.errors[:300], fix=fix)
    return found.output.decode(errors="replace")


def fetch(repository: Path, url: str, refs: Mapping[str, str], options: Mapping[str, str]) -> None:
    """Fetch refs of another repository, each under a name of its own, into a bare one, which is made if it is missing.

    Neither the user's nor the machine's configuration of git applies, and `options` are passed by the environment:
    other users can read a command line, which must hold no token. No large files of LFS are fetched here or when the
    commit is checked out, since a commit's own file says from which server.

    Raises:
        Retryable: the other repository cannot be read.
    """
    repository.mkdir(parents=True, exist_ok=True)
    with _alone(repository):
        if not (repository / "HEAD").exists():
            _run(repository, "init", "--quiet", "--bare")
        for name, value in _WITHOUT_LFS.items():
            _run(repository, "config", name, value)
        refspecs = [f"+{theirs}:{ours}" for theirs, ours in refs.items()]
        flags = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules")
        fetched = _run(repository, "fetch", *flags, "--", url, *refspecs, options=options)
    if fetched.code != 0:
        raise Retryable("git cannot fetch from the server", url=url, refs=list(refs), reason=fetched.errors[-300:])


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
        if added.code != 0:
            fix = "fetch the commit"
            raise InputError("git cannot check the commit out", commit=commit, reason=added.errors[:300], fix=fix)
        yield tree
    finally:
        with _alone(tree.parent):
            _remove(repository, tree)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let only one process fetch, or make or remove worktrees: git removes what another git is making."""
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(repository: Path, tree: Path) -> None:
    _run(repository, "worktree", "remove", "--force", "--force", str(tree))
    _run(repository, "worktree", "prune")


def _run(repository: Path, *arguments: str, options: Mapping[str, str] | None = None) -> Ended:
    """Run git in a repository, and return its exit code, which the caller must check, and its output.

    Of more output than a diff may have, the end is returned. With `options`, git knows no others, reaches HTTP servers
    only, and has five minutes.

    Raises:
        SetupError: not retryable; git is not installed.
        Retryable: git did not end in time.
    """
    seconds = _WITHIN_SECONDS if options is None else _FETCH_SECONDS
    command = ["git", *_QUIET, "-C", str(repository), *arguments]
    environment = None if options is None else _isolated(repository, options)
    try:
        return run_program(command, seconds=seconds, most_bytes=MOST_DIFF_BYTES + 1, environment=environment)
    except FileNotFoundError as error:
        raise SetupError("git is missing; install it beside the agent") from error
    except subprocess.TimeoutExpired as error:
        raise Retryable("git did not end in time", command=arguments[0], seconds=seconds) from error


def _isolated(repository: Path, options: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of git: only these options, no prompts, and no protocol but HTTP."""
    fixed = {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "http:https",
        "GIT_CONFIG_COUNT": str(len(options)),
    }
    for number, (name, value) in enumerate(options.items()):
        fixed |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return clean_environment(os.environ, repository) | fixed
