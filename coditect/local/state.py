"""The files that `up` writes for `down`, `doctor` and every other command to read.

::

    .coditect/              no other user may enter it
    ├── up.json        the supervisor, the running programs (pid and start time), and their restarts
    ├── up.lock        held by the supervisor as long as it lives (flock: it cannot outlive its process)
    ├── env            the addresses of the servers and of the API, with its key, while it is up
    ├── servers.json   ports and secrets of the private servers
    ├── log/           one log per child, and up.log of the supervisor
    ├── run/           ready files of the programs
    ├── rabbitmq/      configuration, cookie and data of the broker
    └── redis/         configuration and data of Redis
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from coditect.agent.process import ProcessId, is_running
from coditect.local.errors import AlreadyUp, StartFailed
from coditect.settings.settings import read_env_file, read_own, write_own


class Phase(StrEnum):
    """The phase of a supervisor, or of one of its children."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ChildState:
    """The state of a supervised program: its present process, its number of restarts, and its last exit code."""

    name: str
    phase: Phase
    process: ProcessId | None = None
    restarts: int = 0
    last_exit: int | None = None
    log: str = ""


@dataclass(frozen=True, slots=True)
class UpState:
    """The state of one `up`: its supervisor, the servers' addresses, and the supervised programs."""

    marker: str
    phase: Phase
    supervisor: ProcessId
    amqp_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    watchdog: ProcessId | None = None
    children: tuple[ChildState, ...] = ()
    management_url: str | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        """True when the supervisor that wrote the state still lives."""
        return is_running(self.supervisor)


class UpFolder:
    """The folder of one `up` (normally ``.coditect`` beside the code) and its files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "up.json"
        """The JSON file in which a running `up` records its supervisor and its programs."""
        self.lock = path / "up.lock"
        """The file whose lock the supervisor holds as long as it lives."""
        self.env = path / "env"
        """The file of the servers' addresses, which later commands read by themselves."""
        self.servers = path / "servers.json"
        """The file of ports and secrets of the private servers."""
        self.log = path / "log"
        """The folder of the log files, one per supervised program."""
        self.run = path / "run"
        """The folder of the files with which programs announce that they are ready."""

    def dashboard(self) -> str | None:
        """Return the address that opens the dashboard of a running `up`; None if no API runs."""
        address = self.address_of("api")
        return None if address is None else dashboard_address(address, read_env_file(self.env).get("CODITECT_API_KEY"))

    def ready_file(self, program: str) -> Path:
        """Return the file with which a program announces that it is ready."""
        return self.run / f"{program}.ready"

    def address_of(self, program: str) -> str | None:
        """Return the address at which a program announced that it listens; None when it announced none."""
        try:
            return self.ready_file(program).read_text() or None
        except FileNotFoundError:
            return None


def dashboard_address(api: str, key: str | None) -> str:
    """Return the address that opens the dashboard of an API with its key, if it has one, at once.

    The key is in the fragment, which a browser neither sends nor logs.
    """
    return api if key is None else f"{api}/#/fleet?key={key}"


def make_private(folder: Path) -> None:
    """Make a folder that no other user may enter, with the folders above it, or close one that exists to them.

    Raises:
        StartFailed: when the folder is a link, or another user owns it.
    """
    for missing in reversed([place for place in (folder, *folder.parents) if not place.exists()]):
        with suppress(FileExistsError):
            missing.mkdir(mode=0o700)
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(opened).st_uid != os.geteuid():  # root could close it, but its owner would still write in it
                raise PermissionError(errno.EPERM, "another user owns it")
            os.fchmod(opened, 0o700)
        finally:
            os.close(opened)
    except OSError as error:
        fix = f"  Remove or own {folder}, or work in another folder"
        raise StartFailed(
            "The folder cannot be made private", folder=str(folder), reason=error.strerror, fix=fix
        ) from error


def open_private(file: str, flags: int) -> int:
    """Open a file, as an `opener` for `open`; if it is made, its owner alone may read it."""
    return os.open(file, flags, 0o600)


def write_atomically(file: Path, text: str) -> None:
    """Replace `file` by `text`, readable by its owner only; a reader sees the old text or the new, never a part."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_own(file, text)


def write_state(folder: UpFolder, state: UpState) -> None:
    """Record the state of an `up` in its file, atomically."""
    write_atomically(folder.state, TypeAdapter(UpState).dump_json(state, indent=2).decode() + "\n")


def read_state(folder: UpFolder) -> UpState | None:
    """Return the state of the user's `up` that runs, or that was killed; None without a readable state file of it.

    An `up` that ends by itself removes the file.
    """
    text = read_own(folder.state)
    try:
        return None if text is None else TypeAdapter(UpState).validate_json(text)
    except ValidationError:
        return None


def write_env(folder: UpFolder, variables: Mapping[str, str]) -> None:
    """Write addresses and the API's key for later commands; only the user can read the file, which has passwords."""
    write_atomically(folder.env, "".join(f"{name}={value}\n" for name, value in variables.items()))


def forget(folder: UpFolder) -> None:
    """Remove the two files by which later commands find an `up` and its servers; data, logs and ports stay."""
    for file in (folder.env, folder.state):
        with suppress(FileNotFoundError):
            file.unlink()


def hold(folder: UpFolder) -> AbstractContextManager[None]:
    """Lock the folder of an `up` inside a block; the kernel frees the lock when the process ends, also by a kill.

    Raises:
        AlreadyUp: another process holds the folder.
    """

    def refusal() -> AlreadyUp:
        state = read_state(folder)
        return AlreadyUp(
            "Coditect is already up in this folder",
            folder=str(folder.path),
            pid=state.supervisor.pid if state else None,
            fix="  coditect down   stops it",
        )

    make_private(folder.path)
    return _locked(folder.lock, refusal)


def hold_data(folder: Path) -> AbstractContextManager[None]:
    """Lock a data folder inside a block, since two brokers that use one folder destroy each other's files.

    Raises:
        AlreadyUp: servers run on the folder.
    """
    return _locked(folder / "servers.lock", lambda: AlreadyUp("Servers run on this folder already", folder=str(folder)))


@contextmanager
def _locked(file: Path, refusal: Callable[[], AlreadyUp]) -> Iterator[None]:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(file, "a", opener=open_private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise refusal() from error
        yield
