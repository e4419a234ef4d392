from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest

from coditect import SyncClient
from coditect.aio.threads import LoopThread
from coditect.errors import SetupError
from tests.servers import ROOT
from tests.unit.sync.scene import SECONDS, FleetClient, Hall


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, whatever a program that ran in this process before made of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _waits() -> bool:
    """Whether the main thread waits for a client's loop."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    inside: set[object] = set()
    while frame is not None:
        inside.add(frame.f_code)
        frame = frame.f_back
    return threading.Condition.wait.__code__ in inside and bool(
        inside & {LoopThread.run.__code__, LoopThread.open.__code__}
    )


@contextmanager
def _interrupted_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C comes while the block waits and the condition is true."""
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(0.01):
            if condition() and _waits():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        over.set()
        thread.join(SECONDS)


def test_interrupt_ends_the_wait_and_neither_task_nor_client(client: SyncClient, hall: Hall) -> None:
    handle = client.submit("hall.hold", "kept")

    with _interrupted_when(hall.held.is_set):
        handle.result(timeout=SECONDS)

    assert not handle.done
    assert client.request("hall.say", 1, timeout=SECONDS) == 1
    hall.let_go.set()
    assert handle.result(timeout=SECONDS) == "kept"


def test_interrupt_of_a_listener_leaves_the_stream_usable(client: SyncClient) -> None:
    with client.events("shop.*") as events:
        with _interrupted_when(lambda: True):
            next(events)

        client.emit("shop.opened")

        assert next(events).type == "shop.opened"


def test_interrupt_while_it_connects_gives_the_attempt_up(fleet: FleetClient) -> None:
    given_up = threading.Event()

    async def never() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    fleet.opening = never
    client = fleet.sync()

    with _interrupted_when(lambda: fleet.loop is not None):
        client.open()

    assert given_up.wait(SECONDS)
    with pytest.raises(SetupError, match="closed"):
        client.emit("shop.opened")


def test_client_that_cannot_be_opened_says_why(fleet: FleetClient) -> None:
    def refuse() -> None:
        raise SetupError("No fleet today")

    fleet.opening = refuse
    client = fleet.sync()

    with pytest.raises(SetupError, match="No fleet today"):
        client.open()
    client.close()


def test_client_that_is_not_open_or_was_closed_is_refused_with_the_way_out(fleet: FleetClient) -> None:
    client = fleet.sync()
    with pytest.raises(SetupError, match=r"not open.*`with` block"):
        client.submit("hall.say")
    with client:
        handle = client.submit("hall.say", 1)
        with pytest.raises(SetupError, match="opened once"):
            client.open()
        events = client.events()

    client.close()
    for use in (lambda: client.submit("hall.say"), handle.result, events.__enter__, lambda: next(handle.events())):
        with pytest.raises(SetupError, match=r"closed.*Client\.sync\(\)"):
            use()
    with pytest.raises(SetupError, match="opened once"):
        client.open()


def test_closing_an_unopened_client_does_nothing(fleet: FleetClient) -> None:
    fleet.sync().close()

    assert fleet.loop is None


def test_closing_releases_whoever_waits_in_another_thread(fleet: FleetClient, hall: Hall) -> None:
    client = fleet.sync().open()
    handle = client.submit("hall.hold")
    told: list[str] = []

    def wait() -> None:
        try:
            handle.result(timeout=SECONDS)
        except SetupError as error:
            told.append(error.sentence)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert hall.held.wait(SECONDS)

    client.close()
    waiting.join(SECONDS)

    assert told == ["The client is closed"]


def test_many_threads_may_use_it_while_it_is_closed(fleet: FleetClient) -> None:
    client = fleet.sync().open()
    ended: list[str] = []
    begun = threading.Barrier(5)

    def use() -> None:
        begun.wait()
        try:
            while True:
                client.request("hall.say", 1, timeout=SECONDS)
        except SetupError as error:
            ended.append(error.sentence)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()

    client.close()
    for thread in threads:
        thread.join(SECONDS)

    assert ended == ["The client is closed"] * 4


def test_forgotten_client_closes_itself(fleet: FleetClient) -> None:
    client = fleet.sync().open()
    handle = client.submit("hall.say", 1)

    del client
    gc.collect()
    assert handle.result(timeout=SECONDS) == 1  # a handle keeps it open
    del handle
    gc.collect()

    assert fleet.left.wait(SECONDS)


def _told(what: str) -> tuple[int, list[str], str]:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.unit.sync.program", what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return run.returncode, run.stdout.splitlines(), run.stderr


def test_client_that_nobody_closed_is_closed_at_the_end_of_the_program() -> None:
    assert _told("forget") == (0, ["said", "left"], "")


def test_program_that_fails_closes_its_client_too() -> None:
    code, told, error = _told("fail")

    assert (code, told) == (1, ["said", "left"])
    assert error.endswith("RuntimeError: fail\n")


def test_program_ends_though_a_thread_of_it_still_waits() -> None:
    code, told, _ = _told("wait")

    assert (code, told) == (0, ["said", "left"])


def test_fork_needs_a_client_of_its_own_and_leaves_the_parents_alone() -> None:
    code, told, error = _told("fork")

    assert (code, error) == (0, "")
    assert told == ["said", "client-", "left", "A client does not survive a fork", "said again", "left"]
