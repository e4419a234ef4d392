"""The run of one command: started by the launcher in a folder of its own, its output read within bounds."""

from __future__ import annotations

import codecs
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from threading import Lock

from coditect.agent.workspaces import Workspaces
from coditect.errors import CoditectError, InputError, Retryable, SetupError
from coditect.integrations.commands import launcher


class CommandFailed(CoditectError):
    """The permanent failure of a command: its exit code, an output too large or outside its workspace, or no limit."""


class CommandTroubled(Retryable):
    """The error of a command run that may succeed when repeated, such as after a signal, an exit code or no result.

    It is also raised when the result says that it failed or lacks a field, the launcher or guard is gone, or git fails.
    """


class InputRefusedByCommand(InputError):
    """The error of a command that refuses its input by its exit code; no further attempt."""


class CommandMissing(SetupError):
    """The error of a command that cannot be started on this machine; another agent may have it.

    Retryable: an agent on another machine may take the next attempt.
    """

    retryable = True


NEEDED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CODITECT_STARTED_BY")
"""The variables of the launcher: to find Python's libraries, and to be found by the watchdog of `coditect up`.

A command may read the environment of its parent, so the agent's secrets are not in it.
"""
END_SECONDS = 10.0
"""How long the launcher may take to end what still runs."""


@dataclass(frozen=True, slots=True)
class StartedCommand:
    """A running command: the pipes of its input and output, and a socket to the guard process that can kill it."""

    control: socket.socket
    stdin: FileIO
    stdout: FileIO
    stderr: FileIO

    def kill(self) -> None:
        """Tell the command's guard process to kill the command with all its processes; do not wait for that.

        The control socket closes when that is done.
        """
        with suppress(OSError):  # of a guard that has ended already
            self.control.shutdown(socket.SHUT_WR)

    def ask_to_end(self) -> None:
        """Ask the guard process to end the command: SIGTERM, then SIGKILL after a grace period. From any thread."""
        with suppress(OSError):  # of a guard that has ended, and with it the command
            self.control.send(b"T")


@dataclass(frozen=True, slots=True)
class Launch:
    """A command to run without a shell: its arguments, folder, environment and limits."""

    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(repr=False)
    memory_bytes: int | None
    """The data segment of each of its processes (`RLIMIT_DATA`); None: no limit."""
    grace_seconds: float
    """The time between SIGTERM and SIGKILL."""

    def line(self) -> bytes:
        """Return the command as the line of JSON that asks a guard process to run it."""
        return json.dumps(asdict(self), default=str).encode() + b"\n"


class Launcher:
    """The starter of an agent process's commands, each below a guard process; any thread may call `start`."""

    def __init__(self, door: socket.socket) -> None:
        self._door = door
        self._lock = Lock()

    @contextmanager
    def start(self, command: Launch) -> Iterator[StartedCommand]:
        """Start a command; leaving the block kills its remaining processes, and closes its files.

        Raises:
            CommandTroubled: when the launcher is gone; retryable.
        """
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            (read, stdin), (stdout, written), (stderr, complained) = os.pipe(), os.pipe(), os.pipe()
            others = [read, written, complained]
            inputs = stack.enter_context(FileIO(stdin, "wb"))
            outputs = [stack.enter_context(FileIO(fd, "rb")) for fd in (stdout, stderr)]
            try:
                with self._lock:
                    socket.send_fds(self._door, [b"R"], [theirs.fileno(), *others])
                ours.sendall(command.line())
            except OSError as error:
                raise CommandTroubled("The launcher of commands is gone", fix="start the agent again") from error
            finally:
                theirs.close()
                for fd in others:
                    os.close(fd)
            yield StartedCommand(ours, inputs, *outputs)


@contextmanager
def launching() -> Iterator[Launcher]:
    """Run a launcher inside of the block; leaving the block ends all commands that still run."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", launcher.__file__, str(theirs.fileno())],
                env={name: os.environ[name] for name in NEEDED if name in os.environ},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            yield Launcher(ours)
        finally:
            ours.close()
            process.wait(END_SECONDS)


GIT_SECONDS = 120.0
_QUIET = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
"""Options of git by which a checkout runs no hook and no file system monitor of the repository."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """A git worktree to work in: the repository's folder, and what to check out."""

    repository: Path
    revision: str
    """A branch, tag or commit; it is not trusted, since it may come from a task's input."""


@contextmanager
def workspace(workspaces: Workspaces, checkout: Checkout | None) -> Iterator[Path]:
    """Make a folder, or a worktree with a detached head, and remove it when the block ends. Blocks its thread.

    Raises:
        InputError: when the repository has no such revision.
        CommandMissing: when there is no git, or no such repository, on this machine; retryable.
        CommandTroubled: when git cannot make the worktree now; retryable.
        WorkspaceUnusable: when there can be no folder, or another user could change it; retryable.
    """
    folder = workspaces.make()
    try:
        with nullcontext(folder) if checkout is None else _worktree(checkout, folder / "tree") as place:
            yield place
    finally:
        workspaces.remove(folder)


@contextmanager
def open_workspaces(base: Path | None, repositories: Iterable[Path]) -> Iterator[Workspaces]:
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
        yield workspaces
    finally:
        workspaces.close()


@contextmanager
def _worktree(checkout: Checkout, tree: Path) -> Iterator[Path]:
    """Check a revision out into a worktree, removed after the block; `git worktree add` gets a hash, not the input."""
    repository, revision = checkout.repository, _commit(checkout.revision)
    found = _git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", revision)
    if found.returncode != 0:
        if (asked := _git(repository, "rev-parse", "--git-dir")).returncode != 0:
            reason, fix = asked.stderr.decode(errors="replace")[-500:], "name the folder of a repository of this user"
            raise CommandMissing("This is no git repository", repository=str(repository), reason=reason, fix=fix)
        raise InputError("The repository has no such revision", revision=checkout.revision[:200], fix="push it first")
    commit = found.stdout.decode().strip()
    added = _git(repository, "worktree", "add", "--detach", "--force", str(tree), commit)
    try:
        if added.returncode != 0:
            reason = added.stderr.decode(errors="replace")[-500:]
            raise CommandTroubled("Git cannot make the worktree", repository=str(repository), reason=reason)
        yield tree
    finally:
        _git(repository, "worktree", "remove", "--force", "--force", str(tree))


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


OUTPUT_PIECE_BYTES = 65_536
TAIL_BYTES = 2_000
LONGEST_PROGRESS_BYTES = 65_536
"""The longest line that is read as progress; a result may be as long as the output."""
OUTPUT_DRAIN_SECONDS = 1.0
"""How long the rest of the output is read after the command's end, if a process that no kill reaches holds it open."""
HIDDEN = "[hidden]"
_BLANKS = bytes((*range(0x21), 0x7F))
_TERMINAL_CODE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])")


def utf_8(text: bytes) -> bytes:
    """Return a text without its byte order mark; UTF-16 with such a mark becomes UTF-8."""
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return text.decode("utf-16", errors="replace").encode()
    return text.removeprefix(codecs.BOM_UTF8)


def bare(json_text: bytes) -> bytes:
    """Return JSON without a byte order mark, terminal codes, and blanks and control characters around it.

    Terminal codes begin with a control character, which JSON has only escaped, so no value changes.
    """
    return _TERMINAL_CODE.sub(b"", utf_8(json_text)).strip(_BLANKS)


def hidden(text: str, secrets: Iterable[str]) -> str:
    """Return a text with `[hidden]` in place of each secret that the command was given; shorten the text afterwards."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return text


def end_of(output: bytes | bytearray, secrets: Collection[str]) -> str:
    """Return the last 2,000 bytes of an output as text, without secrets; `tail_bytes` of the output are enough."""
    most = tail_bytes(secrets)
    text = hidden(output[-most:].decode(errors="replace"), secrets)
    if len(output) >= most:
        text = text[most - TAIL_BYTES :]  # it may begin with a part of a secret
    return text.encode()[-TAIL_BYTES:].decode(errors="replace").strip()


def tail_bytes(secrets: Collection[str]) -> int:
    """Return how many last bytes of an output to keep, so that a secret that reaches into the last 2,000 is whole."""
    return TAIL_BYTES + max((len(secret.encode(errors="surrogateescape")) for secret in secrets), default=0)


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """The end of a command: exit code (negative: a signal), stdout, the end of stderr, and any error of its start."""

    code: int
    stdout: bytes
    complaint: str
    """The last 2,000 bytes of stderr, without the command's secrets."""
    errno: int = 0
    """The error number of a command that could not be started."""
    unlimited: str = ""
    """Why the command was not started: its memory limit could not be set."""


@dataclass(eq=False, slots=True)
class CommandRun:
    """A run of one command: `run` blocks its thread until the command ends, any thread may call `ask_to_end`."""

    most_bytes: int
    secrets: tuple[str, ...] = field(repr=False)
    _started: StartedCommand | None = None
    _unwanted: bool = False

    def ask_to_end(self) -> None:
        """Ask the command to end: SIGTERM, then SIGKILL; asked before its start, kill it as it starts. Idempotent."""
        self._unwanted = True
        if self._started is not None:
            self._started.ask_to_end()

    def run(self, launcher: Launcher, command: Launch, stdin: bytes, on_line: Callable[[bytes], None]) -> CommandEnd:
        """Run the command to its end, wait until none of its processes is left, and return its exit code and output.

        `on_line` gets each line of stdout and stderr that begins with a brace and is short enough for progress.

        Raises:
            CommandFailed: when it writes more than it may; it is killed.
            CommandTroubled: when the launcher or the guard is gone; retryable.
        """
        with launcher.start(command) as started:
            self._started = started
            if self._unwanted:
                started.kill()
            streams = _Streams(self, started, stdin, on_line)
            try:
                return streams.end()
            finally:
                self._started = None
                streams.close()


@dataclass(slots=True)
class _Output:
    """The bytes that a command wrote to one stream: the last `most_bytes` of them."""

    most_bytes: int
    text: bytearray = field(default_factory=bytearray)
    line: bytearray = field(default_factory=bytearray)

    def add(self, piece: bytes, on_line: Callable[[bytes], None]) -> None:
        self.text += piece
        del self.text[: -self.most_bytes]
        *lines, tail = piece.split(b"\n")
        for line in lines:
            self._grow(line)
            if len(self.line) <= LONGEST_PROGRESS_BYTES and (found := bare(bytes(self.line))).startswith(b"{"):
                on_line(found)
            self.line.clear()
        self._grow(tail)

    def _grow(self, tail: bytes) -> None:
        if len(self.line) <= LONGEST_PROGRESS_BYTES:
            self.line += tail


class _Streams:
    """The streams of one command, served by one selector."""

    def __init__(
        self, run: CommandRun, started: StartedCommand, stdin: bytes, on_line: Callable[[bytes], None]
    ) -> None:
        self._run = run
        self._started = started
        self._left = memoryview(stdin)
        self._on_line = on_line
        self._read = 0
        self._outputs = {started.stdout: _Output(run.most_bytes), started.stderr: _Output(tail_bytes(run.secrets))}
        self._selector = selectors.DefaultSelector()
        self._answer = bytearray()
        for stream in (started.stdin, *self._outputs):
            os.set_blocking(stream.fileno(), False)
        for output in self._outputs:
            self._selector.register(output, selectors.EVENT_READ)
        self._selector.register(started.control, selectors.EVENT_READ)
        if stdin:
            self._selector.register(started.stdin, selectors.EVENT_WRITE)
        else:
            started.stdin.close()

    def close(self) -> None:
        """Kill the command's remaining processes, and wait until they have ended."""
        self._selector.close()
        self._started.kill()
        self._started.control.setblocking(True)
        while self._started.control.recv(OUTPUT_PIECE_BYTES):
            continue

    def end(self) -> CommandEnd:
        """Write the input and read the outputs until the command's end, the outputs up to 1 s more; return the end."""
        ended_at: float | None = None
        open_outputs = set(self._outputs)
        while ended_at is None or (open_outputs and time.monotonic() < ended_at + OUTPUT_DRAIN_SECONDS):
            for key, _ in self._selector.select(None if ended_at is None else OUTPUT_DRAIN_SECONDS):
                if key.fileobj is self._started.control:
                    if self._hear():
                        ended_at = time.monotonic()
                elif key.fileobj is self._started.stdin:
                    self._write()
                elif isinstance(key.fileobj, FileIO) and not self._take(key.fileobj):
                    open_outputs.discard(key.fileobj)
        return self._end()

    def _hear(self) -> bool:
        """Read from the guard process; tell whether its answer is complete, or the guard is gone."""
        piece = self._started.control.recv(OUTPUT_PIECE_BYTES)
        self._answer += piece
        if piece and not self._answer.endswith(b"\n"):
            return False
        self._selector.unregister(self._started.control)
        return True

    def _write(self) -> None:
        try:
            self._left = self._left[os.write(self._started.stdin.fileno(), self._left[:OUTPUT_PIECE_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._left = self._left[:0]  # the command does not want the rest, which is its own business
        if not self._left:
            self._selector.unregister(self._started.stdin)
            self._started.stdin.close()

    def _take(self, stream: FileIO) -> bool:
        """Read a piece of stdout or stderr; return False at the stream's end; raise once both together are too long."""
        piece = stream.read(OUTPUT_PIECE_BYTES)
        if piece is None:
            return True
        if not piece:
            self._selector.unregister(stream)
            return False
        self._read += len(piece)
        if self._read > self._run.most_bytes:
            fix = "write less, or raise the limit `output` of the command"
            raise CommandFailed(
                "The command wrote more than it may, and was killed", most=self._run.most_bytes, fix=fix
            )
        self._outputs[stream].add(piece, self._on_line)
        return True

    def _end(self) -> CommandEnd:
        stdout, stderr = (output.text for output in self._outputs.values())
        complaint = end_of(stderr, self._run.secrets)
        if not self._answer:
            raise CommandTroubled("The command was killed together with its guard", complaint=complaint)
        answer = json.loads(self._answer)
        errno, unlimited = answer.get("errno", 0), answer.get("unlimited", "")
        return CommandEnd(answer.get("exit", 0), bytes(stdout), complaint, errno, unlimited)
