"""A profile of client and agent in a round: py-spy takes samples, which are counted by room.

A room is a library, a module of ours or the kernel. A sample belongs to the innermost frame that is in a room, so that
the work of the standard library or the interpreter counts for its caller; a system call counts as the kernel's.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import table

RATE = 250
"""The number of samples per second."""
END_SECONDS = 30.0
ADVICE = (
    "it may look into programs of Coditect, which are not dumpable, only as root, "
    "and in a container with `--cap-add SYS_PTRACE`"
)
KERNEL = "kernel: sockets"
ELSEWHERE = "elsewhere"
SYSTEM_CALLS = frozenset(
    {"send", "__send", "__libc_send", "sendto", "sendmsg", "__libc_sendmsg", "write", "__write", "__libc_write"}
    | {"writev", "__writev", "recv", "__recv", "__libc_recv", "recvfrom", "read", "__read", "__libc_read"}
    | {"epoll_wait", "epoll_pwait", "__epoll_wait"}
)
ROOMS: Mapping[str, str] = {
    "/benchmarks/": "the handler and the driver",
    "/aiormq/": "aiormq",
    "/pamqp/": "pamqp",
    "/pydantic/": "pydantic",
    "/pydantic_core/": "pydantic",
    "/redis/": "redis",
    "/orjson": "orjson",
    "/uvloop/": "uvloop",
    "/asyncio/": "asyncio",
    "_asyncio.": "asyncio",
    "/psutil/": "psutil",
    "/logging/": "logging",
}
"""The rooms by a part of a frame's file name, of which the first match counts; each module of ours is its own room."""
OURS = "/coditect/"
LEAST_SHARE = 1.0
"""The share in per cent below which, in every process, rooms are joined into one row."""
THE_REST = "the rest, each below 1 %"


class NoProfile(RuntimeError):
    """The error of a process into which py-spy could not look; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A call in a sampled stack: a function of a file, Python or native."""

    name: str
    file: str


Stack = Sequence[Frame]
"""The frames of one sample, from the outermost call to the innermost."""


def room(stack: Stack) -> str:
    """Return the room (the package or library) to which a sample's time is counted."""
    if stack and stack[-1].name in SYSTEM_CALLS:
        return KERNEL
    for frame in reversed(stack):
        if name := _room_of(frame.file):
            return name
    return ELSEWHERE


def _room_of(file: str) -> str:
    for part, name in ROOMS.items():
        if part in file:
            return name
    _, ours, module = file.rpartition(OURS)
    return f"coditect.{module.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" if ours else ""


def stacks(document: Mapping[str, object]) -> Iterable[tuple[Stack, float]]:
    """Yield every sample of a speedscope file with its weight in seconds."""
    frames = [Frame(frame["name"], frame.get("file") or "") for frame in document["shared"]["frames"]]  # type: ignore[index]
    for profile in document["profiles"]:  # type: ignore[attr-defined]
        for sample, weight in zip(profile["samples"], profile["weights"], strict=True):
            yield [frames[number] for number in sample], weight


def shares(samples: Iterable[tuple[Stack, float]]) -> dict[str, float]:
    """Return the time by room in per cent, the largest first; the shares add up to 100."""
    seconds: dict[str, float] = defaultdict(float)
    for stack, weight in samples:
        seconds[room(stack)] += weight
    whole = sum(seconds.values())
    largest_first = sorted(seconds.items(), key=lambda share: share[1], reverse=True)
    return {name: 100 * share / whole for name, share in largest_first}


def read_shares(file: Path) -> dict[str, float]:
    """Return the shares of a file that py-spy wrote."""
    return shares(stacks(json.loads(file.read_text())))


def shares_as_markdown(by_process: Mapping[str, Mapping[str, float]]) -> str:
    """Return the shares as a Markdown table: one row for each room, one column for each process."""
    columns = by_process.values()
    names = {name for found in columns for name, share in found.items() if share >= LEAST_SHARE}
    largest_first = sorted(names, key=lambda name: -sum(found.get(name, 0.0) for found in columns))
    rows = [(name, *(_per_cent(found.get(name, 0.0)) for found in columns)) for name in largest_first]
    other_shares = (sum(share for name, share in found.items() if name not in names) for found in columns)
    rows.append((THE_REST, *(_per_cent(share) for share in other_shares)))
    return table(("share of the time", *by_process), rows)


def _per_cent(share: float) -> str:
    return f"{share:.1f} %"


def find_py_spy() -> str:
    """Return the path of the program py-spy.

    Raises:
        NoProfile: when py-spy is not installed.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise NoProfile("py-spy is not installed: run `make profile`, which installs it")
    return found


@asynccontextmanager
async def profiled(pid: int, file: Path) -> AsyncIterator[None]:
    """Take samples of a process, native code included, to the end of the block; write a speedscope file.

    Raises:
        NoProfile: when py-spy is not installed, or the system does not allow it.
    """
    arguments = ("--pid", str(pid), "--rate", str(RATE), "--native", "--full-filenames", "--format", "speedscope")
    spy = await asyncio.create_subprocess_exec(
        *(find_py_spy(), "record", *arguments, "--output", str(file)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            spy.send_signal(signal.SIGINT)  # it writes its file and ends, unless the process has ended before
        said = await _end_of(spy)
    if not file.exists():  # noqa: ASYNC240 - one stat
        raise NoProfile(f"py-spy wrote nothing; {ADVICE}\n{said}")


async def _end_of(spy: asyncio.subprocess.Process) -> str:
    """Return the output of py-spy; kill py-spy when it does not end in time."""
    try:
        async with asyncio.timeout(END_SECONDS):
            _, said = await spy.communicate()
    except TimeoutError:
        spy.kill()
        _, said = await spy.communicate()
    return said.decode(errors="replace").strip()
