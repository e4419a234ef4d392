from __future__ import annotations

import inspect
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import get_args, get_origin

import pytest
import uvloop
from pydantic import BaseModel

from coditect import Client, SyncClient, SyncHandle, TaskCanceled, TaskFailed, sync
from coditect.aio import loop
from coditect.client.coordination import FleetBreakers
from coditect.collaboration.threads import Thread
from coditect.errors import BrokerUnavailable, InvalidTask, ResultTimeout, SetupError, UnknownCapability
from coditect.messaging.event_stream import EventStream
from coditect.sync import CHUNK, Blocking, SyncContext
from tests.unit.sync.scene import SECONDS, FleetClient, Hall

WITHOUT_TWIN: dict[type, set[str]] = {
    Client: {"sync", "from_env", "connecting", "breaker"},  # a guarded call is an `async with`
    Thread: {"open"},  # `Threads.open` is the way to one
    FleetBreakers: {"call"},  # a guarded call is an `async with`
}


class Words(BaseModel):
    text: str


def test_value_comes_back_as_the_type_that_was_asked_for(client: SyncClient) -> None:
    handle = client.submit("hall.say", Words(text="hello"))

    assert handle.result(Words, timeout=SECONDS) == Words(text="hello")
    assert handle.result() == {"text": "hello"}
    assert (handle.done, handle.capability, handle.outcome().task_id) == (True, "hall.say", handle.task_id)
    assert client.request("hall.say", [1], list[int], timeout=SECONDS) == [1]


def test_failure_is_the_error_of_the_asynchronous_client_and_shows_where_it_was_asked_for(client: SyncClient) -> None:
    with pytest.raises(TaskFailed) as raised:
        client.request("hall.fail", "no words", timeout=SECONDS)

    shown = "".join(traceback.format_exception(raised.value))
    assert raised.value.facts["message"] == "no words"
    assert "test_calls.py" in shown  # the caller's line
    assert "handle.py" in shown  # and the one that raised it, in the other thread
    assert "raise error\nRuntimeError: no words" in shown  # the agent's


def test_wait_that_is_over_can_be_repeated(client: SyncClient, hall: Hall) -> None:
    handle = client.submit("hall.hold", "later")
    with pytest.raises(ResultTimeout):
        handle.result(timeout=0.01)
    assert not handle.done

    hall.let_go.set()

    assert handle.result(timeout=SECONDS) == "later"


def test_errors_of_a_submit_are_raised_by_it(client: SyncClient) -> None:
    with pytest.raises(UnknownCapability) as raised:
        client.submit("hall.sya", {})
    assert "hall.say" in str(raised.value.facts["nearest"])

    with pytest.raises(InvalidTask):
        client.submit("hall.say", {1: 2})


def test_many_are_handed_out_in_order(client: SyncClient) -> None:
    values = range(2 * CHUNK + 1)

    handles = client.submit_many("hall.say", iter(values), concurrency=50)

    assert isinstance(handles, Iterator)
    assert [handle.result(int, timeout=SECONDS) for handle in handles] == [*values]


def test_values_are_made_in_the_callers_thread_and_may_use_the_client(client: SyncClient) -> None:
    threads: set[threading.Thread] = set()

    def values() -> Iterator[object]:
        for number in range(3):
            threads.add(threading.current_thread())
            yield client.request("hall.say", number, timeout=SECONDS)

    handles = list(client.submit_many("hall.say", values()))

    assert [handle.result(timeout=SECONDS) for handle in handles] == [0, 1, 2]
    assert threads == {threading.current_thread()}


def test_what_was_taken_before_the_value_that_failed_is_handed_out(client: SyncClient) -> None:
    handles: list[SyncHandle] = []

    with pytest.raises(InvalidTask):
        handles.extend(client.submit_many("hall.say", [1, 2, {3: 3}, 4], concurrency=1))

    assert [handle.result(timeout=SECONDS) for handle in handles] == [1, 2]


def test_events_are_heard_from_the_entered_block_on(client: SyncClient) -> None:
    with client.events("shop.*") as events:
        client.emit("shop.opened", subject="shop-7", by="Ada")
        client.emit("shop.closed")

        heard = next(events)
        assert (heard.type, heard.subject, heard.data) == ("shop.opened", "shop-7", {"by": "Ada"})
        assert [event.type for _, event in zip(range(1), events, strict=False)] == ["shop.closed"]
        assert events.next(timeout=0.01) is None
        client.emit("shop.opened")
        assert events.next(timeout=SECONDS) is not None


def test_events_of_a_task_end_with_it(client: SyncClient, hall: Hall) -> None:
    handle = client.submit("hall.hold")
    events = handle.events()
    with _emitted_again_and_again(client, handle):
        assert next(events).type == "task.noticed"

    hall.let_go.set()

    assert [event.type for event in events][-1] == "task.completed"


def test_events_of_a_task_may_be_left_early(client: SyncClient, hall: Hall) -> None:
    handle = client.submit("hall.hold")
    with _emitted_again_and_again(client, handle):
        for event in handle.events():
            assert event.subject == handle.task_id
            break

    hall.let_go.set()

    assert handle.result(timeout=SECONDS) is None


@contextmanager
def _emitted_again_and_again(client: SyncClient, handle: SyncHandle) -> Iterator[None]:
    """An event of the task, for as long as the block lasts: whoever listens hears one."""
    enough = threading.Event()

    def emit() -> None:
        while not enough.is_set():
            client.emit("task.noticed", subject=handle.task_id)

    emitter = threading.Thread(target=emit)
    emitter.start()
    try:
        yield
    finally:
        enough.set()
        emitter.join(SECONDS)


@pytest.mark.parametrize("by", ["handle", "id"])
def test_canceled_task_ends_as_canceled(client: SyncClient, hall: Hall, by: str) -> None:
    handle = client.submit("hall.hold")
    assert hall.held.wait(SECONDS)

    if by == "handle":
        handle.cancel(reason="no more")
    else:
        client.tasks.cancel(handle.task_id)

    with pytest.raises(TaskCanceled):
        handle.result(timeout=SECONDS)


def test_broadcast_is_heard(client: SyncClient, hall: Hall) -> None:
    client.broadcast("news", {"a": 1})
    client.broadcast("news", {"a": 2}, exclude=["hall"])
    client.broadcast("news", {"a": 3})

    while len(hall.heard) < 2:
        client.request("hall.say", timeout=SECONDS)
    assert hall.heard == [{"a": 1}, {"a": 3}]


def test_forgotten_handle_does_not_disturb_the_others(client: SyncClient) -> None:
    handles = [client.submit("hall.say", number) for number in range(3)]

    handles[1].forget()

    assert [handles[number].result(timeout=SECONDS) for number in (0, 2)] == [0, 2]


def test_threads_share_a_client(client: SyncClient) -> None:
    def ask(number: int) -> object:
        return client.request("hall.say", number, timeout=SECONDS)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(200))) == list(range(200))


async def test_client_works_where_an_event_loop_runs_already(client: SyncClient) -> None:
    """As in a notebook, whose cells run inside one."""
    assert client.request("hall.say", "in a cell", timeout=SECONDS) == "in a cell"


def test_coroutine_on_the_clients_own_loop_is_told_not_to_wait_there(client: SyncClient) -> None:
    told = client.request("hall.call", "x", timeout=SECONDS)

    assert "own event loop" in str(told)
    assert client.request("hall.say", 1, timeout=SECONDS) == 1


@pytest.mark.parametrize("module", [uvloop, None], ids=["uvloop", "asyncio"])
def test_thread_runs_the_fastest_loop_that_is_installed(
    fleet: FleetClient, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "uvloop", module)

    with fleet.sync() as client:
        assert client.request("hall.say", 1, timeout=SECONDS) == 1

    assert isinstance(fleet.loop, uvloop.Loop) is (module is uvloop)
    assert fleet.left.is_set()


PAIRS = [
    (kind, get_args(base)[0])
    for kind in vars(sync).values()
    for base in getattr(kind, "__orig_bases__", ())
    if get_origin(base) in (Blocking, SyncContext) and get_args(base)[0] is not EventStream  # it is iterated over
    if isinstance(get_args(base)[0], type)
]


@pytest.mark.parametrize(("kind", "original"), PAIRS, ids=lambda kind: kind.__name__)
def test_everything_public_is_there_with_its_help(kind: type, original: type) -> None:
    names = {name for name in dir(original) if not name.startswith("_")} - WITHOUT_TWIN.get(original, set())

    for name in names:
        twin = getattr(kind, name)
        assert inspect.getdoc(twin)
        if callable(twin):
            assert [*inspect.signature(twin).parameters] == [*inspect.signature(getattr(original, name)).parameters]
            assert not inspect.iscoroutinefunction(twin)
            assert "async" not in (inspect.getdoc(twin) or "")


def test_client_of_the_environment_is_made_by_the_class_and_that_of_a_client_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asynchronous = Client.from_env({"CODITECT_SLOTS": "7"})
    assert asynchronous.sync().name == asynchronous.name

    monkeypatch.setenv("CODITECT_SLOTS", "none")
    with pytest.raises(SetupError):
        Client.sync()


@pytest.mark.proof
def test_client_without_a_broker_says_so() -> None:
    nowhere = Client.from_env({"CODITECT_AMQP_URL": "amqp://127.0.0.1:9/", "CODITECT_REDIS_URL": "redis://127.0.0.1:9"})

    with pytest.raises(BrokerUnavailable), nowhere.sync():
        raise AssertionError("opened")
