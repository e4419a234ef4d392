"""The agents whose handlers run in processes of their own, which load them from this file."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import AfterValidator

from coditect import Agent, Breaker, CallNext, Context, MiddlewareContext, PlainContext, Retry, RetryAfter
from coditect.agent.context import Services
from coditect.agent.services import TaskServices
from coditect.errors import CoditectError, InputError, InvalidTask, NotFound, VersionConflict
from coditect.telemetry.logs import CURRENT_TASK

DEPENDENCY = Breaker("dependency", failures=2, reset="100ms", on=(OSError,), scope="local")
worker = Agent("process-worker", slots=2, breakers=[DEPENDENCY])
ONCE = Retry(max_attempts=1)


class Silent(Exception):
    def __str__(self) -> str:
        raise SystemExit(4)

    __repr__ = __str__


class Curious(Exception):
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Endless(Exception):
    def __getattr__(self, name: str) -> Any:
        return getattr(self, name + "s")


class Closed(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise LookupError(name)


class Ending(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(7)


class Classless(TimeoutError):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class Traceless(Exception):
    @property
    def __traceback__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no traceback")


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class Undecided(OSError):
    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")

    __len__ = __bool__


class Abrupt(BaseException):
    pass


class Text(str):
    __slots__ = ()

    def __getitem__(self, _: object) -> str:
        raise IndexError

    def encode(self, *_: object) -> bytes:
        raise IndexError


class Wrapped(ExceptionGroup[Exception]):
    def derive(self, _: object) -> Any:
        raise NotImplementedError

    def __str__(self) -> str:
        return Text("wrapped")


class Fixed(CoditectError):
    facts: Any = None

    def __init__(self) -> None:
        Exception.__init__(self, "no facts")

    def __str__(self) -> str:
        return "no facts"


class Exits(Exception):
    def __str__(self) -> str:
        raise SystemExit(4)


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("it holds a lock")
        self.lock = threading.Lock()


def circular() -> Exception:
    first, second = ValueError("first"), Silent("second")
    first.__cause__, second.__cause__ = second, first
    return first


ERRORS: list[Callable[[], BaseException]] = [
    lambda: StopIteration("at an end"),
    lambda: StopAsyncIteration("at an end"),
    lambda: GeneratorExit("left"),
    lambda: KeyboardInterrupt("stop"),
    lambda: SystemExit(3),
    lambda: TimeoutError("its own"),
    lambda: asyncio.CancelledError("by itself"),
    lambda: concurrent.futures.CancelledError("a future"),
    lambda: Abrupt("no Exception"),
    Silent,
    lambda: Curious("asks"),
    lambda: Endless("asks"),
    lambda: Closed("shut"),
    lambda: Ending("at once"),
    lambda: Classless("unclear"),
    lambda: Traceless("unclear"),
    lambda: Frozen(7),
    lambda: Undecided("which?"),
    Fixed,
    lambda: ValueError("a lone \udc80 surrogate"),
    lambda: ValueError("x" * 10_000_000),
    lambda: ExceptionGroup("several", [ValueError("one"), Silent()]),
    lambda: BaseExceptionGroup("several", [KeyboardInterrupt("one"), Closed()]),
    lambda: Wrapped("wrapped", [Curious()]),
    circular,
    Unpicklable,
    Exits,
]


def fail(number: int) -> Any:
    raise ERRORS[number]()


@dataclass(frozen=True, slots=True)
class Sum:
    left: int
    right: int


@worker.capability("proc.add", process=True)
def add(numbers: Sum) -> int:
    return numbers.left + numbers.right


_left_behind: ContextVar[str] = ContextVar("left_behind", default="nothing")


@worker.capability("proc.context", process=True)
def context_of(mine: str) -> str:
    found = _left_behind.get()
    _left_behind.set(mine)
    return found


@worker.capability("proc.parts", process=True)
def parts(most: int) -> Iterator[int]:
    yield from range(most)


@worker.capability("proc.parts.async", process=True)
async def parts_async(most: int) -> AsyncIterator[int]:
    for number in range(most):
        yield number


@worker.capability("proc.call", process=True, retry=ONCE)
async def call(what: str, ctx: Context) -> bool:
    """Call a dependency, which is down, ends the process, or answers; return whether the call was a probe."""
    async with ctx.breaker(DEPENDENCY.name) as made:
        if what == "down":
            raise OSError("the dependency is down")
        if what == "dies":
            os._exit(9)
        if what == "unknown":
            raise KeyError("this is an answer")
    return made.permit is not None


@worker.capability("proc.calls", process=True, retry=ONCE)
async def calls(_: None, ctx: Context) -> list[bool]:
    """Call the dependency twice at once."""
    async with asyncio.TaskGroup() as group:
        made = [group.create_task(call("up", ctx)) for _ in range(2)]
    return [one.result() for one in made]


@worker.capability("proc.wait.long", process=True)
async def wait_long(seconds: float, ctx: Context) -> str:
    return await ctx.without_slot(asyncio.sleep(seconds, "waited"))


@worker.capability("proc.fail", process=True, retry=Retry(max_attempts=3, first="100ms", on=(ValueError,)))
def fail_for(kind: str) -> None:
    if kind == "value":
        raise ValueError("wrong value")
    if kind == "input":
        raise InvalidTask("not like this")
    raise KeyError("wrong key")


def _check_color(color: str) -> str:
    raise KeyError(color)


@dataclass
class Painted:
    color: Annotated[str, AfterValidator(_check_color)]


@worker.capability("proc.raise", process=True, retry=ONCE)
def raising(number: int) -> int:
    """Raise an error, or return which process it is."""
    return int(fail(number)) if number >= 0 else os.getpid()


@worker.capability("proc.raise.async", process=True, retry=ONCE)
async def raising_async(number: int) -> int:
    await asyncio.sleep(0)
    return raising(number)


@worker.capability("proc.paint", process=True, retry=ONCE)
def paint(thing: Painted) -> None:
    """Take an input whose validation breaks."""


@worker.capability("proc.service.breaks", process=True, retry=ONCE)
async def service_breaks(_: None, ctx: Context) -> str:
    services: Any = ctx.services
    try:
        await services.hand_off("nobody")
    except TypeError as error:
        return str(error)
    return "none"


@worker.capability("proc.hang", process=True, timeout="4s", retry=ONCE)
def hang(pids: str) -> None:
    child = subprocess.Popen(["sleep", "60"])
    Path(pids).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)


@worker.capability("proc.exit", process=True, retry=Retry(max_attempts=2, first="100ms"))
def leave(_: None) -> None:
    os._exit(3)


def named_by_logs() -> str:
    """The id of the task that a line of the log would name."""
    task = CURRENT_TASK.get()
    return str(task and task.id)


@worker.capability("proc.logs", process=True)
def logs(_: None) -> str:
    return named_by_logs()


@worker.capability("proc.logs.context", process=True)
def logs_with_context(_: None, ctx: PlainContext) -> str:
    return named_by_logs()


@worker.capability("proc.print", process=True)
def talk(words: str) -> str:
    print(words * 1000)
    os.system(f"echo {words}")
    return words


@worker.capability("proc.stdin", process=True, timeout="20s", retry=ONCE)
def read_stdin(reader: str) -> str:
    """What is read from standard input, by this process or by a program that it runs."""
    if reader == "input":
        return input()
    if reader == "sys.stdin":
        return sys.stdin.read()
    return subprocess.run(["cat"], stdout=subprocess.PIPE, check=True).stdout.decode()


@worker.capability("proc.pool", process=True, timeout="20s", retry=ONCE)
def pooled(numbers: list[int]) -> list[int]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.map(abs, numbers)


@worker.capability("proc.descriptors", process=True, retry=ONCE)
def descriptors(_: None) -> list[str]:
    """The sockets that a program of the handler's inherits."""
    listed = subprocess.run(["ls", "-l", "/proc/self/fd"], stdout=subprocess.PIPE, check=True, text=True).stdout
    return [line for line in listed.splitlines() if "socket:" in line.partition("->")[2]]


@worker.capability("proc.fork", process=True, timeout="20s", retry=ONCE)
def forked(then: str, ctx: PlainContext) -> int:
    """Fork a child, which reports progress, or survives this process; return the child's exit code."""
    child = os.fork()
    if child and then == "dies":
        os._exit(7)
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if then == "dies":
        time.sleep(60)
    try:
        ctx.progress(0.5)
    except OSError:
        os._exit(5)
    os._exit(0)


@worker.capability("proc.close", process=True, timeout="20s", retry=ONCE)
def close_all(_: None) -> None:
    """Close every descriptor, as a library that makes a daemon of its process does, and work on."""
    os.closerange(3, 256)
    time.sleep(60)


@worker.capability("proc.signal", process=True, retry=ONCE)
def signaled(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


@worker.capability("proc.progress", process=True)
async def progress(_: None, ctx: Context) -> str:
    await ctx.progress(0.5, "half way")
    return ctx.task_id


@worker.capability("proc.lock", process=True, retry=ONCE)
def hold(_: None, ctx: PlainContext) -> dict[str, Any]:
    with ctx.lock("repo:x", ttl="1s") as lock:
        time.sleep(3)
        return {"pid": os.getpid(), "fence": lock.fence, "lost": lock.lost}


@worker.capability("proc.ask", process=True, retry=ONCE)
async def ask(numbers: list[int], ctx: Context) -> list[int]:
    pairs = [{"left": number, "right": number} for number in numbers]
    return await asyncio.gather(*(ctx.request("proc.add", pair, int) for pair in pairs))


@worker.capability("proc.ask.wrong", process=True, retry=ONCE)
async def ask_wrong(_: None, ctx: Context) -> dict[str, str]:
    async def error(capability: str, value: object, timeout: str) -> str:
        try:
            await ctx.request(capability, value, timeout=timeout)
        except CoditectError as caught:
            return f"{type(caught).__name__}: {caught}"
        return "none"

    return {
        "nobody": await error("proc.nobody", None, "5s"),
        "late": await error("proc.wait", None, "100ms"),
        "failed": await error("proc.fail", "key", "20s"),
    }


@worker.capability("proc.ask.for", process=True, retry=ONCE)
@worker.capability("loop.ask.for", retry=ONCE)
async def ask_for(how: dict[str, Any], ctx: Context) -> Any:
    """The child's answer, or which parameter was refused, and the fix."""
    try:
        return await ctx.request(how.pop("capability", "loop.level"), **how)
    except InputError as error:
        return [str(error.facts["parameter"]), str(error.facts["fix"])]


@worker.capability("loop.level")
async def level(_: None, ctx: Context) -> str:
    return ctx.priority


@worker.capability("proc.wait")
async def wait(_: None) -> None:
    await asyncio.sleep(30)


@worker.capability("proc.abandon", process=True, retry=ONCE)
async def abandon(_: None, ctx: Context) -> str:
    try:
        async with asyncio.timeout(0.1):
            await ctx.request("proc.wait")
    except TimeoutError:
        return "went on"
    return "was answered"


@worker.capability("proc.tell.wrong", process=True, retry=ONCE)
@worker.capability("loop.tell.wrong", retry=ONCE)
async def tell_wrong(_: None, ctx: Context) -> None:
    await ctx.emit("proc.told", prices=[1.0, float("nan")])


@worker.capability("thread.tell.wrong", retry=ONCE)
def tell_wrong_in_a_thread(_: None, ctx: PlainContext) -> None:
    ctx.emit("proc.told", prices=[1.0, float("nan")])


@worker.capability("loop.progress.wrong", retry=ONCE)
async def progress_wrong(_: None, ctx: Context) -> None:
    await ctx.progress(0.5, "\ud800")


knocks: list[tuple[str, int]] = []


async def lock(services: TaskServices, name: str, token: bytes, *, seconds: float) -> dict[str, Any]:
    """A service that the product does not have."""
    if name != "door":
        raise NotFound("There is no such lock", name=name)
    return {"token": token.hex(), "seconds": seconds, "pid": os.getpid(), "task": services.task_id}


def knock(services: TaskServices, name: str, *, times: int) -> None:
    """Another one, which nobody awaits."""
    knocks.append((f"{name} of {services.task_id}", times))


MADE_UP = {"lock": lock, "knock": knock}


@worker.capability("proc.made.up", process=True, retry=ONCE)
async def made_up(_: None, ctx: Context) -> list[Any]:
    for name, service in MADE_UP.items():
        setattr(Services, name, service)  # in this process; the test does it in the agent's
    services: Any = ctx.services
    services.knock("door", times=2)
    found = [os.getpid(), await services.lock("door", b"\0\xff", seconds=2.5)]
    try:
        await services.lock("wall", b"", seconds=1)
    except NotFound as error:
        found.append(str(error))
    return found


@worker.capability("proc.echo", process=True, retry=ONCE)
def echo(text: str) -> str:
    return text


@worker.capability("proc.later", process=True, retry=Retry(max_attempts=2, first="1h", cap="1h"))
def later(delay: str, ctx: Context) -> int:
    if ctx.attempt == 1:
        raise RetryAfter(delay)
    return ctx.attempt


@worker.capability("proc.headers", process=True)
def headers_of(_: None, ctx: Context) -> dict[str, Any]:
    return dict(ctx.headers)


@worker.capability("proc.retry", process=True, retry=ONCE)
async def retried(failures: int, ctx: Context) -> int:
    """How many tries a call took in a process of its own."""
    tries = 0
    async for attempt in ctx.retry("dependency", Retry(max_attempts=3, first="1ms")):
        with attempt:
            tries += 1
            if tries <= failures:
                raise OSError("it is down")
    return tries


@worker.capability("proc.retry.budget", process=True, retry=ONCE)
def budget(calls: int, ctx: Context) -> int:
    """How many tries so many failing calls took."""
    tries = 0
    for _ in range(calls):
        try:
            for attempt in ctx.retry("budget", Retry(max_attempts=2, first="1ms", cap="1ms")):
                with attempt:
                    tries += 1
                    raise OSError("it is down")
        except OSError:
            continue
    return tries


@worker.capability("proc.plain", process=True)
def plain(numbers: list[int], ctx: PlainContext) -> int:
    total = ctx.request("proc.add", Sum(*numbers), int, timeout="30s")
    ctx.emit("proc.told", total=total)
    return total


@worker.capability("proc.state", process=True, retry=ONCE)
async def state(size: int, ctx: Context) -> dict[str, Any]:
    """Use shared state as a handler on the event loop does, and return what it showed."""
    team, text, conflict = ctx.state("team"), "x" * size, None
    version = await team.put("plan", text)
    try:
        await team.put("plan", "of another", if_version=version + 1)
    except VersionConflict as error:
        conflict = [error.facts["version"], error.facts["wanted"]]
    await team.merge("done", {"draft": True})
    entry, count = await team.entry("plan"), await team.update("count", lambda count: (count or 0) + 1)
    await ctx.shared.put("mine", size)
    return {
        "pid": os.getpid(),
        "whole": entry.value == text,
        "conflict": conflict,
        "done": await team.get("done"),
        "count": count,
        "task": entry.task,
        "writer": entry.writer == ctx.agent_id,
        "keys": [one.key async for one in team.entries()],
        "history": [one.version for one in await team.history("plan")],
    }


packer = Agent("packer", slots=4)
"""An agent of bytes, with handlers of every kind."""


@packer.capability("bytes.loop", retry=ONCE)
async def on_loop(data: bytes) -> bytes:
    return data[::-1]


@packer.capability("bytes.thread", retry=ONCE)
def in_thread(data: bytes) -> bytes:
    return data[::-1]


@packer.capability("bytes.process", process=True, retry=ONCE)
def in_process(data: bytes) -> bytes:
    return data[::-1]


@packer.capability("bytes.size", retry=ONCE)
async def size(data: bytes) -> int:
    return len(data)


@packer.capability("bytes.make", retry=ONCE)
async def make(size: int) -> bytes:
    return bytes([255]) * size


@packer.capability("bytes.wrong", retry=ONCE)
async def wrong(_: None) -> bytes:
    return cast("bytes", "text")


@packer.capability("bytes.ask", retry=ONCE)
async def ask_for_bytes(data: bytes, ctx: Context) -> bytes:
    return await ctx.request("bytes.loop", data, bytes)


@packer.capability("bytes.ask.process", process=True, retry=ONCE)
async def ask_for_bytes_in_process(data: bytes, ctx: Context) -> bytes:
    answer = await ctx.request("bytes.loop", data)
    assert isinstance(answer, bytes)
    return answer


batcher = Agent("batcher", slots=11)


@batcher.capability("batch.where", batch=10, within="20ms", retry=ONCE)
async def where(items: list[str], contexts: list[Context]) -> list[list[str]]:
    return [[item, ctx.task_id, str(os.getpid())] for item, ctx in zip(items, contexts, strict=True)]


measuring = Agent("measuring", slots=2)
measured_in: list[int] = []
"""The process in which the middleware ran."""


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int


@measuring.middleware
async def measured(ctx: MiddlewareContext, call_next: CallNext) -> Any:
    measured_in.append(os.getpid())
    ctx.input = Point(x=len(ctx.input) + 2, y=0) if ctx.input == "tea" else ctx.input
    return await call_next(ctx)


@measuring.capability("middle.process", process=True)
def where_with_point(point: Point | str) -> list[Any]:
    return [os.getpid(), str(point)]
